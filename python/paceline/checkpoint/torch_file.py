# SPDX-License-Identifier: Apache-2.0
"""Reads the files of ``torch.save`` into paceline's tensors, without PyTorch and without trust.

Two containers: the zip archive of today (``data.pkl`` beside one record per storage) and the run
of pickles from before PyTorch 1.6. Sizes are checked against the file before memory is taken; the
archive may not be compressed, overlap itself or name a record twice. Tensors that share a storage
share memory here too, where their layout is dense.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from typing import IO, Any, Literal

from .. import _C
from .._device import device
from .._tensor import raw_memory
from ..dtypes import ALL, BY_NAME
from ..safetensors_format import FormatError
from .numpy_pickles import NUMPY
from .pickles import Builder, Name, read_pickle

__all__ = ["load"]

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of an old file
_PICKLE_LIMIT = 1 << 30
_EXPANDED_LIMIT = 1 << 24  # elements of a tensor whose strides repeat elements
_STORAGES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
}
_DTYPES = {f"torch.{name}": kind for name, kind in BY_NAME.items()}
_CODES = {f"torch.{kind}Storage": BY_NAME[name].code for kind, name in _STORAGES.items()}


def load(file: IO[bytes], place: Callable[[Any, str], Any] | None = None) -> Any:
    """Read one object from a seekable file that stands at its beginning.

    Parameters
    ----------
    file : binary file
        What to read.
    place : callable, optional
        Gives a storage, read on the CPU, on the device where it shall be, from its location when
        it was saved ("cuda:0"); by default it stays on the CPU.

    Raises
    ------
    FormatError
        If the file is damaged, or holds anything but tensors and plain containers.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    zipped = file.read(2) == b"PK"
    file.seek(0)
    try:
        return (_load_zip if zipped else _load_pickles)(file, size, place or _stay)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise FormatError(f"[load] archive is damaged: {error}") from error


def _stay(storage: Any, was: str) -> Any:
    return storage


# -- tensors ----------------------------------------------------------------------------------


class _Storages:
    """Storages by key: one-dimensional tensors that are read when they are first asked for."""

    def __init__(
        self, fetch: Callable[[str, int, int], Any], place: Callable[[Any, str], Any] = _stay
    ) -> None:
        self._fetch = fetch
        self._place = place
        self._held: dict[str, tuple[int, int, Any]] = {}

    def persistent(self, pid: Any) -> Any:
        """Give the storage that a persistent id stands for."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            got = pid[1].text if isinstance(pid[1], Name) else pid[1]
            raise FormatError(
                f"[load] the file asks for {got!s:.100}, which is refused: expected a state_dict, "
                "not a whole model"
            )
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise FormatError(f"[load] storage: got {pid!r:.200}, expected a description")
        kind, key, n = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise FormatError("[load] storage: got a view of another one, which is not supported")
        code = _CODES.get(kind.text) if isinstance(kind, Name) else None
        if code is None:
            got = kind.text if isinstance(kind, Name) else kind
            raise FormatError(
                f"[load] storage: got {got!s:.100}, expected one of {sorted(_STORAGES)}"
            )
        if not isinstance(key, str) or type(n) is not int or not 0 <= n < 2**60:
            raise FormatError(f"[load] storage {key!r:.100}: got {n!r:.100} elements")
        if key not in self._held:
            fetched, was = self._fetch(key, code, n), pid[3]
            placed = fetched is None or type(was) is not str
            self._held[key] = (code, n, fetched if placed else self._place(fetched, was))
        held = self._held[key]
        if held[:2] != (code, n):
            raise FormatError(f"[load] storage {key!r} is described in two ways")
        return held[2]


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """Build a tensor over a storage (``torch._utils._rebuild_tensor_v2``)."""
    if storage is None:  # only looking for the storages
        return None
    if not isinstance(storage, _C.Tensor) or not _are_counts(size) or not _are_counts(stride):
        raise FormatError("[load] tensor: its description is not one")
    if len(size) != len(stride) or not _are_counts((offset,)) or len(size) > 8:
        raise FormatError(f"[load] tensor: got size {size} and stride {stride}")
    n = 1
    for length in size:
        n *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if n and last >= storage._numel():
        raise FormatError(
            f"[load] tensor of size {tuple(size)}: its last element is number {last} of a "
            f"storage of {storage._numel()}"
        )
    made = (
        _C.empty(tuple(size), storage._dtype, storage._device_index)
        if n == 0
        else _strided(storage, offset, size, stride)
    )
    return _C.alias(type(made), made, True) if rest and rest[0] is True else made


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and 0 <= v < 2**60 for v in values)


def _strided(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    order = sorted(range(len(size)), key=lambda d: (size[d] > 1, stride[d]), reverse=True)
    n, dense = 1, True
    for d in reversed(order):
        dense = dense and (size[d] == 1 or stride[d] == n)
        n *= size[d]
    if not dense:
        here = _C.to_device(storage, -1, False)
        apart = _copied(here, offset, size, stride, n)
        return _C.to_device(apart, storage._device_index, False)
    part = _C.slice(storage, 0, offset, offset + n, 1)
    back = [order.index(d) for d in range(len(size))]
    part = _C.view(part, [size[d] for d in order])
    return part if back == sorted(back) else _C.permute(part, back)


def _copied(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], n: int
) -> Any:
    """Copy out a tensor whose elements lie apart in its storage, row by row."""
    if n > max(storage._numel(), _EXPANDED_LIMIT):
        raise FormatError(f"[load] tensor of size {size} repeats its elements too often")
    made = _C.empty(size, storage._dtype)
    words: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
    word = words[ALL[storage._dtype].itemsize]
    source, target = raw_memory(storage).cast(word), raw_memory(made).cast(word)
    row, step = size[-1], stride[-1]
    starts = [offset]
    for length, apart in zip(size[:-1], stride[:-1], strict=True):
        starts = [start + i * apart for start in starts for i in range(length)]
    for at, start in enumerate(starts):
        part = (
            source[start : start + (row - 1) * step + 1 : step]
            if step
            else memoryview(bytes(source[start : start + 1]) * row).cast(word)
        )
        target[at * row : (at + 1) * row] = part
    return made


def _parameter(data: Any, requires_grad: Any = True, *rest: Any) -> Any:
    from ..nn import Parameter

    return None if data is None else Parameter(_C.detach(data), requires_grad=bool(requires_grad))


def _device(kind: Any, index: Any = None) -> Any:
    try:
        return device(str(kind) if index is None else f"{kind}:{int(index)}")
    except (RuntimeError, ValueError, TypeError) as error:
        raise FormatError(f"[load] device: {error}") from error


_TENSORS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _device,
    **NUMPY,
}


# -- the archive ------------------------------------------------------------------------------


def _load_zip(file: IO[bytes], size: int, place: Callable[[Any, str], Any]) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, size)
        roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
        roots = [root for root in roots if "/" not in root]
        if len(roots) != 1:
            raise FormatError("[load] archive has no data.pkl: expected a file of torch.save")
        root = roots[0]
        if f"{root}/constants.pkl" in records:
            raise FormatError("[load] archive holds a TorchScript program: expected tensors")
        order = records.get(f"{root}/byteorder")
        if order is not None and archive.read(order) != b"little":
            raise FormatError("[load] archive: expected byte order 'little'")

        def fetch(key: str, code: int, n: int) -> Any:
            info = records.get(f"{root}/data/{key}")
            if info is None:
                raise FormatError(f"[load] archive has no record for storage {key!r:.100}")
            wanted = n * ALL[code].itemsize
            if info.file_size != wanted:
                raise FormatError(
                    f"[load] storage {key!r}: got {info.file_size} bytes, expected {wanted}"
                )
            with archive.open(info) as record:
                return _filled(record, f"storage {key!r}", code, n)

        storages = _Storages(fetch, place)
        info = records[f"{root}/data.pkl"]
        if info.file_size > _PICKLE_LIMIT:
            raise FormatError(f"[load] data.pkl: got {info.file_size} bytes")
        with archive.open(info) as record:
            return read_pickle(record, _TENSORS, storages.persistent, _DTYPES)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    records: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FormatError(f"[load] archive: {name!r:.200} is compressed, expected it stored")
        if info.flag_bits & 1:
            raise FormatError(f"[load] archive: {name!r:.200} is encrypted")
        if name in records or info.orig_filename != name:
            raise FormatError(f"[load] archive: the name {name!r:.200} occurs twice")
        if info.header_offset < end or (not records and info.header_offset):
            raise FormatError(f"[load] archive: {name!r:.200} overlaps what is before it")
        end = info.header_offset + 30 + info.file_size  # a local header has 30 bytes or more
        records[name] = info
    if end > size:
        raise FormatError("[load] archive: records are longer than the file")
    return records


def _filled(source: Any, what: str, code: int, n: int) -> Any:
    made = _C.empty((n,), code)
    memory = raw_memory(made)
    at = 0
    while at < len(memory):
        got = source.readinto(memory[at : at + (1 << 20)])
        if not got:
            raise FormatError(f"[load] {what} ends early: got {at} bytes, expected {len(memory)}")
        at += got
    if ALL[code].name == "bool" and memory.tobytes().strip(b"\0\1"):
        raise FormatError(f"[load] {what}: bool elements must be 0 or 1")
    return made


# -- the run of pickles -----------------------------------------------------------------------


def _load_pickles(file: IO[bytes], size: int, place: Callable[[Any, str], Any]) -> Any:
    first = read_pickle(file, NUMPY)
    if first != _MAGIC:
        if file.read(1):
            raise FormatError("[load] file has bytes after its pickle")
        return first
    if read_pickle(file, {}) != 1001:
        raise FormatError("[load] file: expected version 1001 of torch.save's old format")
    system = read_pickle(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("[load] file: expected little-endian data")
    start = file.tell()
    wanted: dict[str, tuple[int, int]] = {}

    def note(key: str, code: int, n: int) -> None:
        wanted[key] = (code, n)

    # The data stands behind the pickle, so a first reading only finds out what there is.
    read_pickle(file, _TENSORS, _Storages(note).persistent, _DTYPES)
    keys = read_pickle(file, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(wanted):
        raise FormatError("[load] file: its list of storages is not that of its tensors")
    if sum(n * ALL[code].itemsize for code, n in wanted.values()) > size - file.tell():
        raise FormatError("[load] file ends early: its storages are longer than the file")
    filled: dict[str, Any] = {}
    for key in keys:
        code, n = wanted[key]
        if int.from_bytes(file.read(8), "little") != n:
            raise FormatError(f"[load] storage {key!r}: its length differs from its description")
        filled[key] = _filled(file, f"storage {key!r}", code, n)
    if file.read(1):
        raise FormatError("[load] file has bytes after its storages")
    file.seek(start)
    storages = _Storages(lambda key, code, n: filled[key], place)
    return read_pickle(file, _TENSORS, storages.persistent, _DTYPES)
