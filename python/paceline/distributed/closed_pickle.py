# SPDX-License-Identifier: Apache-2.0
"""Pickles of a closed set of types, for objects that come from another machine.

A pickle may call anything that it can name; here it can name only what builds plain values, NumPy
arrays, tensors and paceline's own records (dataclasses, named tuples, enums: data without a
constructor). Another tensor library's engine registers how its tensors are taken apart.
The sender reads its own pickle back in the same way, so that an object of another type raises
where it was passed in, and never leaves.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import os
import pickle
from collections.abc import Callable
from typing import Any

from paceline import _C

SWITCH = "PACELINE_ALLOW_PICKLE"
_NUMPY = ("numpy._core.multiarray", "numpy.core.multiarray")
_NUMERIC = ("numpy._core.numeric", "numpy.core.numeric")
_SAFE = {
    *(
        ("builtins", name)
        for name in ("bytearray", "complex", "frozenset", "range", "set", "slice")
    ),
    ("collections", "OrderedDict"),
    ("datetime", "timedelta"),
    ("paceline._tensor", "rebuild"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((module, name) for module in _NUMPY for name in ("_reconstruct", "scalar")),
    *((module, "_frombuffer") for module in _NUMERIC),
}


_apart: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


def register(kind: type, apart: Callable[[Any], tuple[Any, ...]], *names: tuple[str, str]) -> None:
    """Let a type pass between machines.

    Parameters
    ----------
    kind : type
        Of the objects; subclasses too.
    apart : callable
        Gives what ``__reduce__`` would: a function, and its arguments of types that pass.
    names : tuple of str and str
        Module and name of that function, and of other types that may be named.
    """
    _apart[kind] = apart
    _SAFE.update(names)


class _Writer(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        for kind, apart in _apart.items():
            if isinstance(obj, kind):
                return apart(obj)
        return NotImplemented


class _Closed(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return super().find_class(module, name)
        if module.startswith("paceline.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and (
                dataclasses.is_dataclass(found) or issubclass(found, (tuple, enum.Enum, _C.Tensor))
            ):
                return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def is_open() -> bool:
    """Whether the user lets any object pass between machines."""
    return os.environ.get(SWITCH, "").strip().lower() in ("1", "true", "yes", "on")


def loads(data: bytes | bytearray | memoryview, closed: bool) -> Any:
    """Read a pickle; with `closed`, only one of plain values and NumPy arrays.

    Raises
    ------
    TypeError
        It holds something else.
    """
    if not closed:
        return pickle.loads(data)
    try:
        return _Closed(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TypeError(
            f"an object of type {error} does not pass between machines: only None, bool, int, "
            "float, complex, str, bytes, lists, tuples, dicts, sets, tensors and NumPy arrays do; "
            f"send a state of those, or set {SWITCH}=1 on all machines, which lets any of them run "
            "code on the others"
        ) from None


def dumps(obj: Any, closed: bool) -> bytes:
    """Pickle `obj`.

    Raises
    ------
    TypeError
        With `closed`, where it holds anything but plain values and NumPy arrays.
    """
    if not closed:
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
    file = io.BytesIO()
    _Writer(file, pickle.HIGHEST_PROTOCOL).dump(obj)
    loads(file.getvalue(), closed)
    return file.getvalue()
