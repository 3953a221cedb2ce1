# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a whole run, all ranks together: the order of things.

A save: all meet; rank 0 takes the place; all write; rank 0 publishes. A load: all meet; all read
and check; only when every rank's part is sound and fits is anything changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..logging import get_logger
from . import foreign, naming
from .disk import OpenFolder
from .folder import Place, read_whole, require_folder
from .manifest import MANIFEST, FileEntry, Manifest, read_manifest
from .run import Loaded, Run
from .together import meet, together

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..utils.dataclasses import ProjectConfiguration

__all__ = ["load_state", "save_state"]

logger = get_logger(__name__)
Path = str | os.PathLike[str]
Hook = Callable[..., None]


def save_state(
    group: ProcessGroup | None,
    run: Run,
    output_dir: Path | None,
    project: ProjectConfiguration,
    hooks: Sequence[Hook],
) -> str:
    """See ``Accelerator.save_state``; without ``output_dir`` the project names the folder."""
    path = output_dir
    if path is None:
        path = naming.path_of(project.project_dir, project.iteration)
    path = meet(group, "save_state", os.fspath(path))[0]
    logger.info("saving state to %s", path)
    place: list[Place] = []  # on rank 0, while it holds the folder

    def begin() -> str:
        if run.rank == 0:
            place.append(Place(path))
            return place[0].temp
        return ""

    def write() -> tuple[int, dict[str, dict[str, Any]]]:
        weights: list[Any] = run.weights()
        for hook in hooks:
            hook(run.models, weights, temp)
        return len(weights), run.write(temp, weights)

    def publish() -> None:
        if run.rank == 0:
            files = {
                name: FileEntry(**entry) for _, made in written for name, entry in made.items()
            }
            place[0].publish(Manifest(files, run.about(written[0][0], project.iteration + 1)))

    try:
        temp = together(group, "save_state", begin)[0]
        written = together(group, "save_state", write)
        together(group, "save_state", publish)
    except BaseException:
        if place:
            place[0].give_up()
        raise
    logger.info("state saved in %s", path)
    if output_dir is None:
        together(group, "save_state", lambda: _prune(run, project, path))
    return str(path)


def _prune(run: Run, project: ProjectConfiguration, path: str) -> None:
    if run.rank == 0:
        for removed in naming.prune(project.project_dir, project.total_limit, path):
            logger.info("removed %s: total_limit is %s", removed, project.total_limit)


def load_state(
    group: ProcessGroup | None,
    run: Run,
    input_dir: Path | None,
    project: ProjectConfiguration,
    hooks: Sequence[Hook],
    strict: bool,
) -> Loaded:
    """See ``Accelerator.load_state``; without ``input_dir`` the project's newest is taken."""
    given = None if input_dir is None else os.path.expanduser(os.fspath(input_dir))
    given = meet(group, "load_state", given)[0]

    def find() -> tuple[str, list[str]]:
        if given is not None or run.rank > 0:
            return given or "", []
        return naming.newest_whole(project.project_dir)

    def read() -> Loaded:
        return read_whole(path, lambda folder: _read(folder, run))

    models = list(run.models)

    def check() -> None:
        for hook in hooks:
            hook(models, path)
        run.check(loaded, models, strict)

    def apply() -> None:
        run.apply(loaded, models, strict)

    path, broken = together(group, "load_state", find)[0]
    require_folder(path)  # all ranks see the same disk
    loaded = _kept(group, read)
    loaded.notices += [f"{folder} is not whole and was passed over" for folder in broken]
    together(group, "load_state", check)
    together(group, "load_state", apply)
    logger.info("state loaded from %s", path)
    return loaded


def _kept(group: ProcessGroup | None, read: Callable[[], Loaded]) -> Loaded:
    """Read on all ranks together, and keep this rank's."""
    kept: list[Loaded] = []
    together(group, "load_state", lambda: kept.append(read()))
    return kept[0]


def _read(folder: OpenFolder, run: Run) -> Loaded:
    if not folder.has(MANIFEST) and foreign.is_accelerates(folder):
        return foreign.read(folder, run.rank, run.world)
    manifest = read_manifest(folder)
    loaded = run.read(folder, manifest)
    if run.rank == 0:
        _check_others(folder, manifest, run, loaded)
    return loaded


def _check_others(folder: OpenFolder, manifest: Manifest, run: Run, loaded: Loaded) -> None:
    """Check the files that no rank reads here: those of hooks."""
    from ..errors import CheckpointError

    for name, entry in manifest.files.items():
        if entry.tensors is None and folder.checksum(name) != entry.checksum:
            raise CheckpointError(
                f"[load_state] {folder.path}/{name} is damaged: its checksum differs"
            )
