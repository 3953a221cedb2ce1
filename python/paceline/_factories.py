# SPDX-License-Identifier: Apache-2.0
"""Making tensors from data, from sizes and like others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paceline import _C, _device, dtypes
from paceline._shape import as_shape
from paceline.dtypes import ALL, dtype, float_code, to_code

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor

Where = str | int | _device.device | None


def finish(t: Tensor, requires_grad: bool) -> Tensor:
    """`t` after the argument that all makers share."""
    if requires_grad:
        t.requires_grad = True
    return t


def beside(op: str, input: _C.Tensor, device: Where) -> int:
    """Where the like of a tensor is made: beside it, unless something else is asked for."""
    return input._device_index if device is None else _device.place(op, device)


# -- from data --------------------------------------------------------------------------------


def tensor(
    data: Any,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor with a copy of `data`.

    Parameters
    ----------
    data : number, nested sequence, array or Tensor
        Integers become int64, floats the default dtype, arrays keep their dtype.
    dtype : dtype, optional
        Overrides that.
    device : device, optional
        Where to put it.
    requires_grad : bool
        Whether operations on it are recorded.
    pin_memory : bool
        In page-locked memory, from which copies to the GPU need not wait; no effect without one.

    Examples
    --------
    >>> tensor([[1, 2], [3, 4]]).sum()
    tensor(10)
    """
    code = to_code(dtype)
    if isinstance(data, _C.Tensor):
        t = _C.clone(_C.to_dtype(_C.detach(data), data._dtype if code < 0 else code))
    elif _is_plain(data):
        t = _from_sequence(data, code)
    else:
        t = _C.clone(_share(data, code))
    if device is not None:
        t = _C.to_device(t, _device.place("tensor", device), False)
    return finish(t.pin_memory() if pin_memory else t, requires_grad)


def as_tensor(data: Any, dtype: dtype | None = None, device: Where = None) -> Tensor:
    """`data` as a tensor, over the same memory where that is possible."""
    code = to_code(dtype)
    t: Any = data
    if not isinstance(data, _C.Tensor):
        t = _from_sequence(data, code) if _is_plain(data) else _share(data, code)
    elif code >= 0:
        t = _C.to_dtype(data, code)
    return t if device is None else _C.to_device(t, _device.place("as_tensor", device), False)


def from_numpy(array: Any) -> Tensor:
    """A tensor over the memory of a NumPy array.

    Warns where the array is not writable: writing to the tensor would write to it.

    Raises
    ------
    TypeError
        If `array` is no array, or its dtype has no like here.
    """
    if not hasattr(array, "__array_interface__") or not hasattr(array, "strides"):
        raise TypeError(f"[from_numpy] got {type(array).__name__}, expected a NumPy array")
    if not array.flags.writeable:
        import warnings

        warnings.warn(
            "[from_numpy] the array is not writable, but the tensor over its memory is: "
            "use paceline.tensor(array) for a copy",
            stacklevel=2,
        )
    return _C.from_buffer(array, -1)


# How the elements of a buffer are called by memoryview.cast.
_FORMATS = {"bool": "?", "uint8": "B", "int32": "i", "int64": "q", "float16": "e",
            "float32": "f", "float64": "d"}  # fmt: skip


def frombuffer(buffer: Any, *, dtype: dtype, count: int = -1, offset: int = 0) -> Tensor:
    """A 1-d tensor over the memory of an object with the buffer protocol."""
    if dtype.name not in _FORMATS:
        raise TypeError(f"[frombuffer] dtype: got {dtype!r}, expected one of {list(_FORMATS)}")
    view = memoryview(buffer).cast("B")[offset:]
    size = dtype.itemsize
    wanted = len(view) if count < 0 else count * size
    if wanted > len(view) or wanted % size:
        kind = "a multiple of" if count < 0 else "at least"
        raise ValueError(
            f"[frombuffer] bytes: got {len(view)}, expected {kind} {size if count < 0 else wanted}"
        )
    element: Any = _FORMATS[dtype.name]
    return _C.from_buffer(view[:wanted].cast(element), dtype.code)


def _is_plain(data: Any) -> bool:
    # NumPy's float64 is a float too, but knows its dtype.
    numbers = isinstance(data, (bool, int, float, list, tuple))
    return numbers and not hasattr(data, "__array_interface__")


def _from_sequence(data: Any, code: int) -> Tensor:
    try:
        t = _C.from_data(data, code)
    except TypeError:
        plain = _plain(data)
        if plain is data:
            raise
        t = _C.from_data(plain, code)
    if code < 0 and ALL[t._dtype].is_floating_point and t._dtype != float_code(None):
        return _C.from_data(_plain(data), float_code(None))
    return t


def _plain(data: Any) -> Any:
    # Arrays and tensors inside lists as numbers and lists.
    if isinstance(data, (list, tuple)):
        return [_plain(d) for d in data]
    return data.tolist() if hasattr(data, "tolist") else data


def _share(data: Any, code: int) -> Tensor:
    if hasattr(data, "__array__") and not hasattr(data, "__array_interface__"):
        data = data.__array__()
    if hasattr(data, "__array_interface__"):
        data = _shareable(data)
    elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _from_sequence(list(data), code)
    try:
        t = _C.from_buffer(data, -1)
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"[tensor] data: got {type(data).__name__}, expected numbers, sequences or arrays"
        ) from error
    return t if code < 0 else _C.to_dtype(t, code)


def _shareable(array: Any) -> Any:
    """A NumPy array or scalar as one whose memory a tensor can have.

    Integers of a width that tensors have not become int64, which holds them all but uint64's
    largest, and those raise.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biuf" or size > 8:
        raise TypeError(
            f"[tensor] data: got an array of {array.dtype}, "
            "expected one of numbers or bools of 8 bytes at most"
        )
    if kind in "iu" and array.dtype.name not in ("uint8", "int32", "int64"):
        if array.dtype.name == "uint64" and array.size and int(array.max()) >= 2**63:
            raise OverflowError(f"[tensor] data: got {int(array.max())}, expected below 2**63")
        return array.astype("int64")
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    strided = all(s >= 0 and s % size == 0 for s in array.strides)
    return array if array.flags.writeable and strided else array.copy()


# -- from sizes -------------------------------------------------------------------------------


def full(
    size: Any,
    fill_value: bool | int | float,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor with one value everywhere; its type decides the dtype where none is given."""
    if dtype is not None:
        code = to_code(dtype)
    elif isinstance(fill_value, bool):
        code = dtypes.bool_.code
    elif isinstance(fill_value, int):
        code = dtypes.int64.code
    else:
        code = float_code(None)
    t = _C.full(as_shape("full", (size,)), fill_value, code, _device.place("full", device))
    return finish(t, requires_grad)


def zeros(
    *size: Any, dtype: dtype | None = None, device: Where = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    t = _C.full(as_shape("zeros", size), 0, float_code(dtype), _device.place("zeros", device))
    return finish(t, requires_grad)


def ones(
    *size: Any, dtype: dtype | None = None, device: Where = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones: ``ones(2, 3)`` or ``ones((2, 3))``."""
    t = _C.full(as_shape("ones", size), 1, float_code(dtype), _device.place("ones", device))
    return finish(t, requires_grad)


def empty(
    *size: Any,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor whose contents are whatever the memory held."""
    t = _C.empty(as_shape("empty", size), float_code(dtype), _device.place("empty", device))
    return finish(t.pin_memory() if pin_memory else t, requires_grad)


def arange(
    start: int | float,
    end: int | float | None = None,
    step: int | float = 1,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from `start` up to but without `end`; int64 where all three are integers."""
    if end is None:
        start, end = 0, start
    if step == 0:
        raise RuntimeError("[arange] step: got 0, expected a number other than 0")
    whole = all(hasattr(v, "__index__") for v in (start, end, step))
    code = to_code(dtype, dtypes.int64.code if whole else float_code(None))
    t = _C.arange(start, end, step, code, _device.place("arange", device))
    return finish(t, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers at equal distances from `start` to `end`, both included."""
    if steps < 0:
        raise RuntimeError(f"[linspace] steps: got {steps}, expected 0 or more")
    delta = (end - start) / (steps - 1) if steps > 1 else 0.0
    line = _C.arange(0, steps, 1, dtypes.float64.code, _device.place("linspace", device))
    t = _C.add(_C.mul(line, delta), start)
    if steps > 1:
        t[steps - 1] = end
    return finish(_C.to_dtype(t, float_code(dtype)), requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """The identity matrix, or the first `m` columns of it."""
    at = _device.place("eye", device)
    rows = _C.unsqueeze(_C.arange(0, n, 1, dtypes.int64.code, at), 1)
    columns = _C.arange(0, n if m is None else m, 1, dtypes.int64.code, at)
    t = _C.to_dtype(_C.eq(rows, columns), float_code(dtype))
    return finish(t, requires_grad)


# -- like others ------------------------------------------------------------------------------


def zeros_like(
    input: _C.Tensor,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Zeros with the shape and dtype of `input`."""
    at = beside("zeros_like", input, device)
    t = _C.full(input.shape, 0, to_code(dtype, input._dtype), at)
    return finish(t, requires_grad)


def ones_like(
    input: _C.Tensor,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones with the shape and dtype of `input`."""
    at = beside("ones_like", input, device)
    t = _C.full(input.shape, 1, to_code(dtype, input._dtype), at)
    return finish(t, requires_grad)


def full_like(
    input: _C.Tensor,
    fill_value: bool | int | float,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """One value with the shape and dtype of `input`."""
    at = beside("full_like", input, device)
    t = _C.full(input.shape, fill_value, to_code(dtype, input._dtype), at)
    return finish(t, requires_grad)


def empty_like(
    input: _C.Tensor,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uninitialised memory with the shape and dtype of `input`."""
    at = beside("empty_like", input, device)
    t = _C.empty(input.shape, to_code(dtype, input._dtype), at)
    return finish(t, requires_grad)


def scalar_tensor(value: bool | int | float, *, dtype: dtype | None = None) -> Tensor:
    """A 0-d tensor; floating-point unless `dtype` says otherwise."""
    if isinstance(value, float) and math.isnan(value):
        return _C.full((), math.nan, float_code(dtype))
    return _C.full((), value, float_code(dtype))
