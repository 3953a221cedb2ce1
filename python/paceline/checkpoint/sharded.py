# SPDX-License-Identifier: Apache-2.0
"""A model's weights by themselves: one file, or shards and an index, named as the field names them.

New files are written beside and flushed before any gets its name. One file replaces another in one
step, and a new set is not seen before its index, which comes last. Where a set of several files
takes the place of an older one, names of both may be the same: there the whole folder is replaced
(``folder.py``). It knows state dicts of the core's tensors, no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

from .. import safetensors_format, serialization
from ..errors import CheckpointError
from . import disk
from .folder import Place
from .manifest import MANIFEST

__all__ = ["save_weights", "size_in_bytes"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def size_in_bytes(size: int | str) -> int:
    """Understand ``"10GB"`` (powers of ten), ``"10GiB"`` (of two) or a number of bytes.

    Raises
    ------
    ValueError
        For anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = match[2].upper() if match else "?"
    if match is None or unit not in _UNITS or float(match[1]) <= 0:
        raise ValueError(
            f"[save_model] max_shard_size: got {size!r}, expected a number of bytes or the like "
            "of '5GB'"
        )
    return int(float(match[1]) * _UNITS[unit])


def save_weights(weights: Mapping[str, Any], folder: str, max_shard_size: int | str) -> None:
    """Write ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and their index.

    Parameters
    ----------
    weights : mapping
        The core's tensors by name.
    folder : str
        Made if it does not exist; other files in it are left alone.
    max_shard_size : int or str
        Of one file; a single larger tensor gets a file of its own.

    Raises
    ------
    CheckpointError
        If the folder is a file or holds a checkpoint, or the system refuses.
    """
    limit = size_in_bytes(max_shard_size)
    folder = os.path.abspath(os.path.expanduser(folder))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise CheckpointError(f"[save_model] {folder} is a file, expected a folder")
    if os.path.exists(os.path.join(folder, MANIFEST)):
        raise CheckpointError(
            f"[save_model] {folder} holds a checkpoint, whose files have checksums: save the model "
            "to another folder"
        )
    files = _planned(weights, limit)
    mark = secrets.token_hex(4)
    try:
        os.makedirs(folder, exist_ok=True)
        old = _ours(folder)
        if old and len(files) + len(old) > 2 and _can_be_replaced(folder):
            _replace(files, folder)
        else:
            _write(files, folder, mark)
    except OSError as error:
        if isinstance(error, CheckpointError):
            error.args = (str(error).replace("[save_state]", "[save_model]", 1),)
            raise
        raise disk.write_error(error, folder, -1) from error
    finally:
        for name in files:
            with contextlib.suppress(OSError):
                os.unlink(_beside(folder, name, mark))


def _planned(weights: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Give the files: (tensors, metadata) each, and the index as bytes."""
    tensors, metadata = serialization.take_apart(dict(weights))
    if safetensors_format.total_size(tensors) <= limit:
        return {"model.safetensors": (tensors, metadata)}
    parts: list[dict[str, Any]] = []
    room = 0
    for name, tensor in tensors.items():
        size = safetensors_format.total_size({name: tensor})
        if not parts or size > room:
            parts.append({})
            room = limit
        parts[-1][name] = tensor
        room -= size
    files: dict[str, Any] = {}
    placed: dict[str, str] = {}
    for at, part in enumerate(parts, 1):
        name = f"model-{at:05d}-of-{len(parts):05d}.safetensors"
        files[name] = (part, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    total = safetensors_format.total_size(tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    files[_INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    return files


def _beside(folder: str, name: str, mark: str) -> str:
    return os.path.join(folder, f".{name}.{mark}.tmp")


def _ours(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if _OURS.fullmatch(name)]


def _can_be_replaced(folder: str) -> bool:
    """Whether the folder's name can be given to another."""
    folder = os.path.realpath(folder)
    return not os.path.ismount(folder) and os.access(os.path.dirname(folder), os.W_OK)


def _replace(files: Mapping[str, Any], folder: str) -> None:
    """Write a folder with the new set and the old one's other files, and let them change places."""
    place = Place(folder)
    try:
        for name, content in files.items():
            _write_one(os.path.join(place.temp, name), content)
        place.replace(_ours(place.target))
    except BaseException:
        place.give_up()
        raise


def _write(files: Mapping[str, Any], folder: str, mark: str) -> None:
    for name, content in files.items():
        _write_one(_beside(folder, name, mark), content)
    if len(files) > 1:
        # Where the folder itself has to stay: no weights for a moment, rather than a mixture.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, _INDEX))
            disk.sync_folder(folder)
    for name in files:  # the index is the last
        disk.rename(_beside(folder, name, mark), os.path.join(folder, name))
    disk.sync_folder(folder)
    for name in _ours(folder):
        if name not in files:
            os.unlink(os.path.join(folder, name))


def _write_one(path: str, content: Any) -> None:
    is_text = isinstance(content, bytes)
    needed = len(content) if is_text else safetensors_format.total_size(content[0])
    with disk.Writer(path, needed) as file:
        if is_text:
            file.write(content)
        else:
            safetensors_format.write(file, *content)  # type: ignore[arg-type]
