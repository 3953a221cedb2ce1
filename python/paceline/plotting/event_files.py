# SPDX-License-Identifier: Apache-2.0
"""Reads the scalars of TensorBoard's event files, without TensorBoard.

A file is a sequence of records: length (8 bytes), its checksum (4), data, its checksum (4). The
data is the protocol-buffer message Event, of which three fields matter: wall_time (1, double),
step (2, varint) and summary (5), whose values (1) have a tag (1) and either simple_value (2,
float) or a tensor (8) with float_val (5), double_val (6) or tensor_content (4). Written after the
published .proto files; fields of other numbers are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import PlotError

__all__ = ["Scalar", "read_scalars"]

_DOUBLE_DTYPE = 2  # DT_DOUBLE


class Scalar(NamedTuple):
    """One number: its tag, step, time (seconds since 1970) and value."""

    tag: str
    step: int
    time: float
    value: float


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give (number, value) of a message: an int for a varint, else the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + size]
        at += size


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _of_tensor(data: bytes) -> float | None:
    dtype, found = 0, None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 5:
            found = struct.unpack("<f", _bytes(value)[:4])[0]
        elif number == 6:
            found = struct.unpack("<d", _bytes(value)[:8])[0]
        elif number == 4 and value:
            form = ("<d", 8) if dtype == _DOUBLE_DTYPE else ("<f", 4)
            content = _bytes(value)
            if len(content) == form[1]:
                found = struct.unpack(form[0], content)[0]
    return None if found is None else float(found)


def _of_value(data: bytes) -> tuple[str, float | None]:
    tag, found = "", None
    for number, value in _fields(data):
        if number == 1:
            tag = _bytes(value).decode("utf-8", "replace")
        elif number == 2:
            found = float(struct.unpack("<f", _bytes(value))[0])
        elif number == 8 and found is None:
            found = _of_tensor(_bytes(value))
    return tag, found


def _of_event(data: bytes) -> Iterator[Scalar]:
    time, step = 0.0, 0
    for number, value in _fields(data):
        if number == 1:
            time = struct.unpack("<d", _bytes(value))[0]
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >= 1 << 63 else value
        elif number == 5:
            for inner, message in _fields(_bytes(value)):
                if inner == 1:
                    tag, found = _of_value(_bytes(message))
                    if found is not None:
                        yield Scalar(tag, step, time, found)


def read_scalars(path: Path) -> Iterator[Scalar]:
    """Give the scalars of an event file in the order of their writing.

    A last record that is not whole is left out: the file may still be written.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    PlotError
        When it is no event file, or damaged.
    """
    data = path.read_bytes()
    at = 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        begin, end = at + 12, at + 12 + size
        if end + 4 > len(data):
            if at == 0 and size > 1 << 20:
                raise PlotError(f"{path} is no event file of TensorBoard")
            return
        try:
            yield from _of_event(data[begin:end])
        except (ValueError, IndexError, struct.error) as error:
            raise PlotError(f"{path} is damaged at byte {at}: {error}") from error
        at = end + 4
