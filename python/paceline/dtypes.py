# SPDX-License-Identifier: Apache-2.0
"""Data types, their limits, and the default one.

The codes are those of ``csrc/base/base.h`` (``PL_DTYPE_MAP``), in its order. Knows no tensor.
"""

from __future__ import annotations

# For modules in which `int` means a dtype.
Int = int

__all__ = [
    "bfloat16",
    "bool_",
    "dtype",
    "finfo",
    "float16",
    "float32",
    "float64",
    "get_default_dtype",
    "iinfo",
    "int32",
    "int64",
    "set_default_dtype",
    "uint8",
]


class dtype:  # noqa: N801 (PyTorch's name)
    """The type of a tensor's elements.

    Attributes
    ----------
    name : str
        ``"float32"`` and so on.
    itemsize : int
        Bytes of one element.
    is_floating_point : bool
        Whether it can carry a gradient.
    """

    __slots__ = ("code", "is_floating_point", "itemsize", "name")

    def __init__(self, code: int, name: str, itemsize: int, is_floating_point: bool) -> None:
        self.code = code
        self.name = name
        self.itemsize = itemsize
        self.is_floating_point = is_floating_point

    @property
    def is_complex(self) -> bool:
        return False

    @property
    def is_signed(self) -> bool:
        return self.code > 1

    def __repr__(self) -> str:
        return f"paceline.{self.name}"

    def __reduce__(self) -> str:
        # Types are compared by identity, so a copy from a pickle must be the one of this module.
        return "bool_" if self.name == "bool" else self.name


bool_ = dtype(0, "bool", 1, False)
uint8 = dtype(1, "uint8", 1, False)
int32 = dtype(2, "int32", 4, False)
int64 = dtype(3, "int64", 8, False)
float16 = dtype(4, "float16", 2, True)
bfloat16 = dtype(5, "bfloat16", 2, True)
float32 = dtype(6, "float32", 4, True)
float64 = dtype(7, "float64", 8, True)

#: By code.
ALL = (bool_, uint8, int32, int64, float16, bfloat16, float32, float64)
BY_NAME = {d.name: d for d in ALL}

_default = float32


def get_default_dtype() -> dtype:
    """The dtype of floating-point tensors whose dtype is not given."""
    return _default


def set_default_dtype(d: dtype, /) -> None:
    """Set the dtype of floating-point tensors whose dtype is not given.

    Raises
    ------
    TypeError
        If `d` is not a floating-point dtype.
    """
    global _default
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise TypeError(f"[set_default_dtype] got {d!r}, expected a floating-point dtype")
    _default = d


def to_code(d: object, default: int = -1) -> int:
    """Code of a dtype argument; `default` for None. Also takes ``float``, ``int``, ``bool``."""
    if isinstance(d, dtype):
        return d.code
    if d is None:
        return default
    if d is float:
        return _default.code
    if d is int:
        return int64.code
    if d is bool:
        return bool_.code
    name = getattr(d, "name", None) or getattr(d, "__name__", None)
    hint = f"; write paceline.{name}" if isinstance(name, str) and name in BY_NAME else ""
    raise TypeError(f"[dtype] got {d!r}, expected a paceline dtype{hint}")


def float_code(d: object) -> int:
    """Code of a dtype argument that stands for the default dtype where it is None."""
    return to_code(d, _default.code)


# name: bits, eps, max, smallest normal number
_FLOATS = {
    "float16": (16, 2.0**-10, 65504.0, 2.0**-14),
    "bfloat16": (16, 2.0**-7, (2.0 - 2.0**-7) * 2.0**127, 2.0**-126),
    "float32": (32, 2.0**-23, (2.0 - 2.0**-23) * 2.0**127, 2.0**-126),
    "float64": (64, 2.0**-52, (2.0 - 2.0**-52) * 2.0**1023, 2.0**-1022),
}


class finfo:  # noqa: N801
    """Limits of a floating-point dtype: ``bits``, ``eps``, ``max``, ``min``, ``tiny``."""

    def __init__(self, type: dtype | None = None) -> None:
        d = _default if type is None else type
        if not isinstance(d, dtype) or d.name not in _FLOATS:
            raise TypeError(f"[finfo] got {d!r}, expected a floating-point dtype")
        self.dtype = d.name
        self.bits, self.eps, self.max, self.tiny = _FLOATS[d.name]
        self.min = -self.max
        self.smallest_normal = self.tiny
        self.resolution = 10.0 ** {"float16": -3, "bfloat16": -2, "float32": -6}.get(d.name, -15)

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, "
            f"eps={self.eps:g}, smallest_normal={self.tiny:g}, tiny={self.tiny:g}, "
            f"dtype={self.dtype})"
        )


class iinfo:  # noqa: N801
    """Limits of an integer dtype: ``bits``, ``max``, ``min``."""

    def __init__(self, type: dtype) -> None:
        if not isinstance(type, dtype) or type.is_floating_point or type is bool_:
            raise TypeError(f"[iinfo] got {type!r}, expected an integer dtype")
        self.dtype = type.name
        self.bits = type.itemsize * 8
        self.min = -(2 ** (self.bits - 1)) if type.is_signed else 0
        self.max = 2 ** (self.bits - 1) - 1 if type.is_signed else 2**self.bits - 1

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"
