# SPDX-License-Identifier: Apache-2.0
"""The manifest: what a whole checkpoint consists of, with a checksum of every byte.

``manifest.json`` is written last. A file of ours is listed with one checksum for its header and
one for each tensor, so that each byte is hashed once and a damaged tensor can be named; any other
file has one checksum. The last line is the checksum of the lines before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from .. import safetensors_format
from .._progress import bytes_moved
from ..errors import CheckpointError
from .disk import CHUNK, OpenFolder, Writer, clean_name, digest, hasher
from .reading import read_parts

__all__ = ["MANIFEST", "FileEntry", "Manifest", "read_manifest", "read_tensors", "write_tensors"]

MANIFEST = "manifest.json"
_FORMAT = "paceline checkpoint"
_VERSION = 1
_LIMIT = 256 << 20  # bytes of a manifest; a million tensors need about half of it


@dataclass(frozen=True)
class FileEntry:
    """One file: its bytes, and checksums of the whole or of its parts.

    Attributes
    ----------
    size : int
        Bytes.
    checksum : str
        Of the whole file, or of its header where there are ``tensors``.
    tensors : mapping, optional
        Checksum of each tensor's bytes, by name.
    """

    size: int
    checksum: str
    tensors: Mapping[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Give what stands for it in the manifest."""
        found: dict[str, Any] = {"size": self.size, "checksum": self.checksum}
        if self.tensors is not None:
            found["tensors"] = dict(self.tensors)
        return found

    @classmethod
    def of(cls, folder: OpenFolder, name: str) -> FileEntry:
        """Look at a file that somebody else wrote."""
        return cls(folder.size(name), folder.checksum(name))


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is made of.

    Attributes
    ----------
    files : mapping
        Every file but the manifest, by its path below the folder.
    about : mapping
        World size, counts of models and the like; JSON.
    """

    files: Mapping[str, FileEntry]
    about: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> bytes:
        """Give the bytes of ``manifest.json``."""
        body = {
            "format": _FORMAT,
            "version": _VERSION,
            **self.about,
            "files": {name: entry.as_json() for name, entry in sorted(self.files.items())},
        }
        text = json.dumps(body, indent=1, ensure_ascii=False)
        lines = text.removesuffix("\n}") + ",\n"
        return f'{lines} "checksum": "{digest(lines.encode())}"\n}}\n'.encode()

    def entry(self, name: str) -> FileEntry:
        """Give a file's entry.

        Raises
        ------
        CheckpointError
            If the checkpoint has no such file.
        """
        if name not in self.files:
            raise CheckpointError(f"[load_state] the checkpoint has no {name}")
        return self.files[name]


def read_manifest(folder: OpenFolder) -> Manifest:
    """Read a manifest, trusting nothing in it.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, of a later version, or names a place outside the folder.
    """
    if folder.size(MANIFEST) > _LIMIT:
        raise _damaged(folder, f"got more than {_LIMIT} bytes")
    with folder.open(MANIFEST) as file:
        raw: bytes = file.read(_LIMIT)
    head, mark, tail = raw.rpartition(b' "checksum": "')
    if not mark or tail != f'{digest(head)}"\n}}\n'.encode():
        raise _damaged(folder, "its checksum is not that of its content")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(body, dict) or body.pop("format", None) != _FORMAT:
        raise _damaged(folder, f"it is no {_FORMAT}")
    version = body.pop("version", None)
    if version != _VERSION:
        raise _damaged(
            folder, f"version {version!r}, expected {_VERSION}: a newer paceline wrote it"
        )
    listed = body.pop("files", None)
    body.pop("checksum", None)
    if not isinstance(listed, dict):
        raise _damaged(folder, "it lists no files")
    files = {clean_name(name): _entry(folder, name, value) for name, value in listed.items()}
    return Manifest(files, body)


def _entry(folder: OpenFolder, name: str, value: Any) -> FileEntry:
    good = isinstance(value, dict) and type(value.get("size")) is int
    good = good and isinstance(value.get("checksum"), str)
    tensors = value.get("tensors") if good else None
    if not good or not (tensors is None or isinstance(tensors, dict)):
        raise _damaged(folder, f"the entry of {name!r} is not one")
    return FileEntry(value["size"], value["checksum"], tensors)


def _damaged(folder: OpenFolder, why: str) -> CheckpointError:
    error = CheckpointError(f"[load_state] {folder.path}/{MANIFEST} is damaged: {why}")
    error.path = f"{folder.path}/{MANIFEST}"
    return error


# -- files with checksums ---------------------------------------------------------------------


def _moving(how: str, path: str, size: int) -> AbstractContextManager[Callable[[int], None]]:
    return bytes_moved(f"{how} {os.path.basename(path)}", size)


def write_tensors(path: str, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> FileEntry:
    """Write a safetensors file through to the disk; gives its entry.

    Raises
    ------
    CheckpointError
        If the system refuses: the text has the path, the reason and the bytes needed and free.
    """
    needed = safetensors_format.total_size(tensors) + sum(map(len, metadata.values()))
    with Writer(path, needed) as file, _moving("writing", path, needed) as moved:
        summed = _Summed(file, moved)
        safetensors_format.write(summed, tensors, metadata, summed.watch)  # type: ignore[arg-type]
    return FileEntry(file.size, summed.sums.pop(""), summed.sums)


class _Summed:
    """A file to write to, which hashes each part piece by piece on its way, in the cache."""

    def __init__(self, file: Writer, moved: Callable[[int], None]) -> None:
        self.sums: dict[str, str] = {}
        self._file = file
        self._moved = moved
        self._name = ""

    def watch(self, name: str, part: Any) -> None:
        """Learn the name of the part that is written next, if it has any bytes."""
        self._name = name
        self.sums[name] = hasher().hexdigest()

    def write(self, data: Any) -> int:
        """Write a whole part."""
        running, view = hasher(), memoryview(data).cast("B")
        for at in range(0, len(view), CHUNK):
            piece = view[at : at + CHUNK]
            running.update(piece)
            self._file.write(piece)
            self._moved(len(piece))
        self.sums[self._name] = running.hexdigest()
        return len(view)


def read_tensors(
    folder: OpenFolder, name: str, entry: FileEntry | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file; with an ``entry``, nothing is given unless every byte is right.

    Raises
    ------
    CheckpointError
        If the file is damaged; the text names it, and the tensor.
    """
    where = f"{folder.path}/{name}"
    size = folder.size(name)
    if entry is not None and size >= 0 and size != entry.size:
        raise CheckpointError(
            f"[load_state] {where} is damaged: got {size} bytes, expected {entry.size}"
        )
    sums = {} if entry is None else dict(entry.tensors or {})

    def check(tensor: str, found: str, wanted: str | None) -> None:
        if entry is not None and found != wanted:
            what = f"tensor {tensor!r}" if tensor else "its header"
            raise CheckpointError(
                f"[load_state] {where} is damaged: the checksum of {what} differs"
            )

    def watch(_: str, header: Any) -> None:
        if entry is not None:
            check("", digest(header), entry.checksum)

    def fill(file: Any, parts: list[tuple[safetensors_format.Entry, memoryview]]) -> None:
        with _moving("reading", name, size) as moved:
            found = read_parts(file.fileno(), file.tell(), parts, moved)
        for tensor, _ in parts:
            check(tensor.name, found[tensor.name], sums.pop(tensor.name, None))

    with folder.open(name) as file:
        try:
            tensors, metadata = safetensors_format.read(file, size, watch, fill)
        except safetensors_format.FormatError as error:
            raise CheckpointError(f"[load_state] {where} is damaged: {error}") from error
    if sums:
        raise CheckpointError(f"[load_state] {where} is damaged: tensors are missing: {list(sums)}")
    return dict(tensors), metadata
