# SPDX-License-Identifier: Apache-2.0
"""Numbered checkpoints: ``<project_dir>/checkpoints/checkpoint_<n>``."""

from __future__ import annotations

import os
import re

from ..errors import CheckpointError
from . import disk
from .folder import clear_leftovers, is_whole

__all__ = ["newest_whole", "path_of", "prune"]

_NAME = re.compile(r"checkpoint_(\d+)")
_LEFT = re.compile(r"(checkpoint_\d+)\.(?:tmp|old)-[0-9a-f]+")


def _folder(project_dir: str | os.PathLike[str] | None) -> str:
    if project_dir is None:
        raise ValueError(
            "[save_state] automatic_checkpoint_naming needs a project_dir: give it to Accelerator "
            "or to ProjectConfiguration"
        )
    return os.path.join(os.path.expanduser(os.fspath(project_dir)), "checkpoints")


def path_of(project_dir: str | os.PathLike[str] | None, iteration: int) -> str:
    """Give the name of a new checkpoint.

    Raises
    ------
    ValueError
        If there is one of this number already.
    """
    path = os.path.join(_folder(project_dir), f"checkpoint_{iteration}")
    if os.path.exists(path):
        raise ValueError(
            f"Checkpoint directory {path} ({iteration}) already exists. Please manually override "
            "`self.save_iteration` with what iteration to start with."
        )
    return path


def _numbered(folder: str) -> list[tuple[int, str]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
    return sorted((number, os.path.join(folder, name)) for number, name in found)


def newest_whole(project_dir: str | os.PathLike[str] | None) -> tuple[str, list[str]]:
    """Give the checkpoint of the highest number that is whole, and those above that are not.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    folder = _folder(project_dir)
    broken: list[str] = []
    for _, path in reversed(_numbered(folder)):
        foreign = os.path.exists(os.path.join(path, "random_states_0.pkl"))
        if is_whole(path) or foreign:
            return path, broken
        broken.append(path)
    raise CheckpointError(f"[load_state] no whole checkpoint in {folder}")


def prune(project_dir: str | os.PathLike[str] | None, limit: int | None, newest: str) -> list[str]:
    """Remove the oldest checkpoints until ``limit`` are left, ``newest`` in any case among them.

    One that goes first gets a name that is no checkpoint's, so none is ever half there.

    Returns
    -------
    list of str
        What was removed.
    """
    folder = _folder(project_dir)
    for name in os.listdir(folder):
        left = _LEFT.fullmatch(name)
        if left:
            clear_leftovers(os.path.join(folder, left[1]))
    removed: list[str] = []
    if limit is None:
        return removed
    others = [path for _, path in _numbered(folder) if not os.path.samefile(path, newest)]
    for path in others[: max(0, len(others) + 1 - limit)]:
        going = f"{path}.tmp-00000000"
        disk.remove_tree(going)
        disk.rename(path, going)
        disk.remove_tree(going)
        removed.append(path)
    return removed
