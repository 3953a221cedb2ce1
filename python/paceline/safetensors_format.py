# SPDX-License-Identifier: Apache-2.0
"""The safetensors file format: an 8-byte length, a JSON header, the tensors' bytes.

Written so that every other reader takes it, and read without trusting it: sizes, offsets and
dtypes are checked before anything is allocated. Knows tensors, no nesting (``serialization.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from paceline import _C
from paceline._tensor import Tensor, on_host, raw_memory
from paceline.dtypes import ALL
from paceline.errors import PacelineError

#: Longest header that is read: as safetensors itself.
HEADER_LIMIT = 100_000_000
_ALIGN = 64

#: Fills the memory of tensors with their bytes; is given the file, which stands at the data.
Fill = Callable[["IO[bytes]", "list[tuple[Entry, memoryview]]"], None]

#: Is shown each part of a file on its way: the header under "", then each tensor's bytes by name.
Watch = Callable[[str, "bytes | memoryview"], None]
_NAMES = ("BOOL", "U8", "I32", "I64", "F16", "BF16", "F32", "F64")  # by dtype code
_CODES = {name: code for code, name in enumerate(_NAMES)}


class FormatError(PacelineError, ValueError):
    """The file is not what it says, or not safetensors."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype code, shape and place in the data."""

    name: str
    code: int
    shape: tuple[int, ...]
    begin: int
    end: int


# -- writing ----------------------------------------------------------------------------------


def _nbytes(t: _C.Tensor) -> int:
    return t._numel() * ALL[t._dtype].itemsize


def total_size(tensors: Mapping[str, _C.Tensor]) -> int:
    """Bytes of data that a file of these tensors holds."""
    return sum(map(_nbytes, tensors.values()))


def write(
    file: IO[bytes],
    tensors: Mapping[str, _C.Tensor],
    metadata: Mapping[str, str],
    watch: Watch | None = None,
) -> None:
    """Write tensors and texts.

    Wider dtypes come first, so that every tensor is aligned to its elements.

    Parameters
    ----------
    file : binary file
        Where to.
    tensors, metadata : mapping
        What.
    watch : callable, optional
        Is shown each part before it is written.
    """
    order = sorted(tensors, key=lambda name: -ALL[tensors[name]._dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        t = tensors[name]
        size = _nbytes(t)
        header[name] = {
            "dtype": _NAMES[t._dtype],
            "shape": list(t.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > HEADER_LIMIT:
        raise ValueError(
            f"[save] header: got {len(text)} bytes, expected {HEADER_LIMIT} at most; "
            "save fewer objects that are not tensors"
        )
    head = len(text).to_bytes(8, "little") + text
    if watch is not None:
        watch("", head)
    file.write(head)
    for name in order:
        held = on_host(tensors[name])
        memory = raw_memory(held)
        if watch is not None:
            watch(name, memory)
        if _nbytes(held):
            file.write(memory)


# -- reading ----------------------------------------------------------------------------------


def is_pickle(lead: bytes) -> bool:
    """Tell whether a file that begins so may be one of PyTorch's: an archive or a pickle."""
    # A header's length may begin with the same bytes; then its upper half is zero and JSON follows,
    # which no archive and no pickle looks like.
    is_header = lead[4:8] == bytes(4) and lead[8:9] in (b"{", b"")
    return (lead[:2] == b"PK" or lead[:1] == b"\x80") and not is_header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise FormatError(f"[load] a key occurs twice in the header: {key!r}")
        out[key] = value
    return out


def read_header(file: IO[bytes], watch: Watch | None = None) -> tuple[list[Entry], dict[str, str]]:
    """Entries in the order of their data, and the texts; the file then stands at the data.

    Parameters
    ----------
    file : binary file
        Standing at the beginning.
    watch : callable, optional
        Is shown the header's bytes before they are understood.

    Raises
    ------
    FormatError
        If anything in it does not hold together.
    """
    lead = file.read(8)
    if is_pickle(lead):
        raise FormatError(
            "[load] this is a pickle of PyTorch's: expected safetensors, as paceline.save writes"
        )
    if len(lead) < 8:
        raise FormatError(f"[load] file is too short: got {len(lead)} bytes, expected 8 or more")
    length = int.from_bytes(lead, "little")
    if length > HEADER_LIMIT:
        raise FormatError(
            f"[load] header: got a length of {length}, expected {HEADER_LIMIT} at most"
        )
    text = file.read(length)
    if len(text) != length:
        raise FormatError(f"[load] header ends early: got {len(text)} bytes, expected {length}")
    if watch is not None:
        watch("", lead + text)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"[load] header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"[load] header: got {type(header).__name__}, expected an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("[load] __metadata__: expected an object of texts")
    entries = sorted((_entry(name, value) for name, value in header.items()), key=_place)
    at = 0
    for entry in entries:
        if entry.begin != at:
            kind = "overlaps the one before" if entry.begin < at else "leaves a hole before it"
            raise FormatError(
                f"[load] tensor {entry.name!r} {kind}: begins at {entry.begin}, expected {at}"
            )
        at = entry.end
    return entries, metadata


def _place(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.end


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"[load] tensor {name!r}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _CODES:
        raise FormatError(
            f"[load] tensor {name!r}: dtype: got {dtype!r}, expected one of {list(_NAMES)}"
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_count, shape)):
        raise FormatError(
            f"[load] tensor {name!r}: shape: got {shape!r}, expected up to 8 sizes, 0 or more"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise FormatError(f"[load] tensor {name!r}: data_offsets: got {offsets!r}")
    count = 1
    for size in shape:
        count *= size
    code = _CODES[dtype]
    wanted = count * ALL[code].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise FormatError(
            f"[load] tensor {name!r}: got {offsets[1] - offsets[0]} bytes of data, "
            f"expected {wanted} for {dtype} of shape {shape}"
        )
    return Entry(name, code, tuple(shape), offsets[0], offsets[1])


def read(
    file: IO[bytes],
    size: int | None = None,
    watch: Watch | None = None,
    fill: Fill | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its texts.

    Parameters
    ----------
    file : binary file
        Standing at the beginning.
    size : int, optional
        Length of the file; where it is known, it is checked before memory is taken.
    watch : callable, optional
        Is shown each part as it was read; what it raises ends the reading.
    fill : callable, optional
        Reads the data of all tensors in its own way, of which `watch` is then shown nothing; for a
        file whose `size` is given.

    Raises
    ------
    FormatError
        If the file does not hold together.
    """
    entries, metadata = read_header(file, watch)
    total = entries[-1].end if entries else 0
    if size is not None:
        data = size - file.tell()
        if data != total:
            kind = "ends early" if data < total else "has bytes after its tensors"
            raise FormatError(f"[load] file {kind}: got {data} bytes of data, expected {total}")
    tensors: dict[str, Tensor] = {}
    parts: list[tuple[Entry, memoryview]] = []
    for entry in entries:
        t = tensors[entry.name] = _C.empty(entry.shape, entry.code)
        parts.append((entry, raw_memory(t)))
        if fill is None:
            _fill(file, *parts[-1])
            if watch is not None:
                watch(entry.name, parts[-1][1])
    if fill is not None:
        fill(file, parts)
    elif file.read(1):
        raise FormatError("[load] file has bytes after its tensors")
    for part in parts:
        _check_bools(*part)
    return tensors, metadata


def _fill(file: IO[bytes], entry: Entry, memory: memoryview) -> None:
    at = 0
    while at < len(memory):
        got: int = file.readinto(memory[at:])  # type: ignore[attr-defined]
        if not got:
            raise FormatError(
                f"[load] file ends early: in tensor {entry.name!r}, "
                f"got {at} bytes, expected {len(memory)}"
            )
        at += got


def _check_bools(entry: Entry, memory: memoryview) -> None:
    if entry.code == 0 and memory.tobytes().strip(b"\0\1"):
        raise FormatError(f"[load] tensor {entry.name!r}: bool elements must be 0 or 1")
