# SPDX-License-Identifier: Apache-2.0
"""NumPy's arrays and numbers in a pickle, of numeric dtypes only; needs NumPy when one is met."""

from __future__ import annotations

import re
from typing import Any

from ..safetensors_format import FormatError
from .pickles import Builder, Name, Stateful

__all__ = ["NUMPY"]

_NUMERIC = re.compile(r"[biufc](1|2|4|8|16)")


class _DType(Stateful):
    """A dtype by its letter and size, such as ``f8``; its state has the byte order."""

    def __init__(self, text: Any, *flags: Any) -> None:
        if not isinstance(text, str) or not _NUMERIC.fullmatch(text):
            raise FormatError(f"[load] NumPy dtype: got {text!r:.50}, expected a numeric one")
        self.text = text

    def finish(self, state: Any) -> _DType:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise FormatError("[load] NumPy dtype: expected a plain one, little-endian")
        return self


class _Array(Stateful):
    """Holds the place of an array until its content comes."""

    def finish(self, state: Any) -> Any:
        if not isinstance(state, tuple) or len(state) != 5:
            raise FormatError("[load] NumPy array: its state is not one")
        _, shape, dtype, fortran, content = state
        return _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
    import numpy

    good = isinstance(dtype, _DType) and isinstance(content, (bytes, bytearray))
    good = good and isinstance(shape, tuple) and len(shape) <= 32
    if not good or not all(type(n) is int and 0 <= n < 2**60 for n in shape) or order not in "CF":
        raise FormatError("[load] NumPy array: its state is not one")
    try:
        flat = numpy.frombuffer(bytearray(content), numpy.dtype(dtype.text))
        return flat.reshape(shape, order=order)
    except ValueError as error:
        raise FormatError(f"[load] NumPy array: {error}") from error


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, ()).item()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return _array(content, dtype, shape, order)


def _reconstruct(kind: Any, *rest: Any) -> _Array:
    if not isinstance(kind, Name) or kind.text != "numpy.ndarray":
        raise FormatError("[load] NumPy array: of another class")
    return _Array()


NUMPY: dict[str, Builder] = {"numpy.dtype": _DType}
for _room in ("numpy.core", "numpy._core"):
    NUMPY[f"{_room}.multiarray._reconstruct"] = _reconstruct
    NUMPY[f"{_room}.multiarray.scalar"] = _scalar
    NUMPY[f"{_room}.numeric._frombuffer"] = _from_buffer
