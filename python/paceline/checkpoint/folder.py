# SPDX-License-Identifier: Apache-2.0
"""How a folder is replaced so that there is always a whole one.

Everything is written into ``D.tmp-<random>`` beside ``D``, each file flushed to the disk, the
manifest last; then the two change places in one step (``RENAME_EXCHANGE``), or the new one gets
the free name. Killed at any moment, ``D`` is the old checkpoint or the new one.

Where a file system cannot exchange, ``D`` is renamed to ``D.old-<random>`` first. Recovery rule:
if there is no ``D``, ``D.old-*`` is the checkpoint; loading reads it, the next save renames it
back. What a dead save left behind, the next save of the same folder removes.

Files in ``D`` that belong to no checkpoint (a log, say) are in the new ``D`` too: as the same
files, by a second link. Knows nothing of what is in a checkpoint but its manifest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from ..errors import CheckpointError
from . import disk
from .disk import Lock, OpenFolder
from .manifest import MANIFEST, FileEntry, Manifest, read_manifest

__all__ = ["Place", "clear_leftovers", "is_whole", "read_whole", "require_folder"]

T = TypeVar("T")
_RETRIES = 10


class Place:
    """A folder that is about to be written; one process holds it at a time.

    Parameters
    ----------
    target : path
        The checkpoint's name; its parents are made.

    Attributes
    ----------
    target : str
        The same, absolute, links followed.
    temp : str
        Where to write.

    Raises
    ------
    CheckpointError
        When another process is saving there, ``target`` is a file, or the system refuses.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = os.path.realpath(os.path.expanduser(os.fspath(target)))
        self.parent, name = os.path.split(self.target)
        self.temp = f"{self.target}.tmp-{secrets.token_hex(4)}"
        try:
            os.makedirs(self.parent, exist_ok=True)
            if os.path.exists(self.target) and not os.path.isdir(self.target):
                raise CheckpointError(f"[save_state] {self.target} is a file, expected a folder")
            self._lock = Lock(os.path.join(self.parent, f".{name}.lock"))
        except OSError as error:
            raise self._refused(error) from error
        try:
            _recover(self.target)
            _remove_leftovers(self.target)
            disk.make_folder(self.temp)
        except BaseException as error:
            self.give_up()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise

    def _refused(self, error: OSError) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        return disk.write_error(error, self.target, -1)

    def publish(self, manifest: Manifest) -> None:
        """Make what was written the checkpoint; the manifest is completed by files not listed.

        Raises
        ------
        CheckpointError
            When the system refuses; the checkpoint that was there before still is.
        """
        try:
            self._publish(manifest)
        except OSError as error:
            raise self._refused(error) from error
        self._lock.release()

    def replace(self, old_files: Collection[str]) -> None:
        """Make what was written the folder, where it is no checkpoint of ours.

        Parameters
        ----------
        old_files : collection of str
            What is not carried over into it.

        Raises
        ------
        CheckpointError
            When the system refuses; the folder that was there before still is.
        """
        try:
            self._replace(old_files)
        except OSError as error:
            raise self._refused(error) from error
        self._lock.release()

    def _publish(self, manifest: Manifest) -> None:
        text = Manifest({**manifest.files, **self._unlisted(manifest)}, manifest.about).render()
        with disk.Writer(os.path.join(self.temp, MANIFEST), len(text)) as file:
            file.write(text)
        self._replace(_listed(self.target))

    def _replace(self, old_files: Collection[str]) -> None:
        """Put the new folder in the place of the old one, with what is not of ``old_files``."""
        _carry_over(self.target, self.temp, old_files, disk.link)
        for folder, _, _ in os.walk(self.temp):
            disk.sync_folder(folder)
        old = self._swap()
        if old is not None:
            # What came into the old folder while the new one took its place.
            with contextlib.suppress(OSError):
                _carry_over(old, self.target, old_files, disk.rename)
                disk.remove_tree(old)

    def _swap(self) -> str | None:
        """Give the new folder its name; gives where the old one is now."""
        target, temp = self.target, self.temp
        if not os.path.isdir(target):
            disk.rename(temp, target)
            self._settle(lambda: disk.rename(target, temp))
            return None
        if disk.exchange(temp, target):
            self._settle(lambda: disk.exchange(temp, target))
            return temp
        old = f"{target}.old-{secrets.token_hex(4)}"
        disk.rename(target, old)
        try:
            disk.rename(temp, target)
        except OSError:
            disk.rename(old, target)
            raise
        disk.sync_folder(self.parent)
        return old

    def _settle(self, undo: Callable[[], object]) -> None:
        try:
            disk.sync_folder(self.parent)
        except OSError:
            with contextlib.suppress(OSError):
                undo()
            raise

    def _unlisted(self, manifest: Manifest) -> dict[str, FileEntry]:
        """Flush and list the files that others (hooks) wrote."""
        found = {}
        with OpenFolder(self.temp) as folder:
            for name in _files(self.temp):
                if name not in manifest.files and folder.has(name):
                    with folder.open(name) as file:
                        os.fsync(file.fileno())
                    found[name] = FileEntry.of(folder, name)
        return found

    def give_up(self) -> None:
        """Remove what was written; the checkpoint that was there before is untouched."""
        with contextlib.suppress(OSError):
            disk.remove_tree(self.temp)
        self._lock.release()


def _files(top: str) -> Iterator[str]:
    """Yield what is no folder, by its path below ``top``."""
    for folder, names, files in os.walk(top):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            yield os.path.relpath(os.path.join(folder, name), top)


def _listed(target: str) -> Collection[str]:
    """Give the files that belong to the checkpoint in a folder, if there is one."""
    try:
        with OpenFolder(target) as folder:
            return {MANIFEST, *read_manifest(folder).files}
    except (CheckpointError, OSError):
        return {MANIFEST}


def _carry_over(
    source: str, target: str, without: Collection[str], move: Callable[[str, str], None]
) -> None:
    """Bring the files of a folder that are not of its checkpoint into another."""
    for name in _files(source) if os.path.isdir(source) else ():
        there = os.path.join(target, name)
        if name in without or os.path.lexists(there):
            continue
        os.makedirs(os.path.dirname(there), exist_ok=True)
        move(os.path.join(source, name), there)


# -- what dead saves left -----------------------------------------------------------------------


def _siblings(target: str, kind: str) -> list[str]:
    parent, name = os.path.split(target)
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    start = f"{name}.{kind}-"
    return sorted(os.path.join(parent, found) for found in names if found.startswith(start))


def _recover(target: str) -> None:
    if not os.path.lexists(target):
        for old in _siblings(target, "old")[:1]:
            disk.rename(old, target)


def _remove_leftovers(target: str) -> None:
    for left in [*_siblings(target, "tmp"), *_siblings(target, "old")]:
        disk.remove_tree(left)


def clear_leftovers(target: str) -> None:
    """Remove what a dead save of a folder left behind, unless somebody is saving there."""
    parent, name = os.path.split(target)
    try:
        lock = Lock(os.path.join(parent, f".{name}.lock"))
    except OSError:
        return
    try:
        _recover(target)
        _remove_leftovers(target)
    finally:
        lock.release()


# -- reading ------------------------------------------------------------------------------------


def is_whole(path: str) -> bool:
    """Tell whether a folder has a manifest, and every file of it in its size."""
    try:
        with OpenFolder(path) as folder:
            files = read_manifest(folder).files
            return all(folder.size(name) == entry.size for name, entry in files.items())
    except OSError:
        return False


def read_whole(path: str, reader: Callable[[OpenFolder], T]) -> T:
    """Read a checkpoint while others may replace it: all of the old one, or all of the new one.

    Parameters
    ----------
    path : str
        The checkpoint's name; the recovery rule applies.
    reader : callable
        Reads from the open folder.
    """
    for attempt in range(_RETRIES):
        try:
            held = OpenFolder(require_folder(path))
        except FileNotFoundError:  # renamed between looking and opening
            continue
        with held as folder:
            try:
                return reader(folder)
            except CheckpointError:
                if attempt == _RETRIES - 1 or not folder.is_replaced():
                    raise
    raise CheckpointError(f"[load_state] {path} is replaced too often to be read")


def require_folder(path: str) -> str:
    """Give the folder that holds a checkpoint: its own, or the one of the recovery rule.

    Raises
    ------
    ValueError
        If there is none.
    """
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ValueError(f"[load_state] {path} is a file, expected a folder")
    kept = [old for old in _siblings(os.path.realpath(path), "old") if os.path.isdir(old)]
    if kept:
        return kept[0]
    if os.path.isdir(path):  # it got its name between the two looks
        return path
    raise ValueError(f"Tried to find {path} but folder does not exist")
