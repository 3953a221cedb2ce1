# SPDX-License-Identifier: Apache-2.0
"""The functions of the package that are not methods: joins, comparisons, choice.

Those that are methods too are made from them by `from_method`, in one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from paceline import _C
from paceline._shape import wrap_dim
from paceline.dtypes import ALL, dtype

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor

Scalar = bool | int | float


def from_method(name: str) -> Callable[..., Any]:
    """The method `name` of a tensor as a function whose first argument is the tensor."""

    def function(input: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(input, name)(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"As the tensor's method: ``input.{name}(...)``."
    return function


#: Functions that are `Tensor` methods; `paceline` makes each on first use.
METHODS = frozenset(
    """
    abs add all amax amin any argmax argmin argsort bmm ceil chunk clamp clip clone contiguous cos
    cumsum detach diagonal div dot eq erf exp expand_as flatten flip floor floor_divide gather ge gt
    index_select is_complex is_floating_point isfinite isinf isnan le log log_softmax logical_and
    logical_not logical_or logical_xor lt masked_fill masked_select matmul max maximum mean min
    minimum mm mul mv narrow ne neg nonzero norm numel permute pow prod reciprocal relu remainder
    reshape round rsqrt select sigmoid sign sin softmax sort split sqrt square squeeze std sub sum
    t tanh topk transpose tril triu unbind unflatten unsqueeze var
    """.split()
)
#: Other names of the same.
ALIASES = {
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "less": "lt",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "swapaxes": "transpose",
    "true_divide": "div",
}


def cat(tensors: Sequence[_C.Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Join tensors along a dimension they have."""
    return _C.cat(tensors, dim if axis is None else axis)


def stack(tensors: Sequence[_C.Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Join tensors of one shape along a new dimension."""
    return _C.stack(tensors, dim if axis is None else axis)


def hstack(tensors: Sequence[_C.Tensor]) -> Tensor:
    """Join side by side: along dimension 1, or 0 for vectors."""
    return _C.cat(tensors, 0 if tensors[0].ndim == 1 else 1)


def vstack(tensors: Sequence[_C.Tensor]) -> Tensor:
    """Join one above the other: vectors become rows."""
    rows = [_C.unsqueeze(t, 0) if t.ndim == 1 else t for t in tensors]
    return _C.cat(rows, 0)


def where(condition: _C.Tensor, input: _C.Tensor | Scalar | None = None, other: Any = None) -> Any:
    """`input` where the condition holds, else `other`; coordinates where only it is given."""
    if input is None and other is None:
        return tuple(_C.nonzero(condition).unbind(1))
    if input is None or other is None:
        raise TypeError("[where] expected (condition) or (condition, input, other)")
    return _C.where(condition, input, other)


def outer(input: _C.Tensor, vec2: _C.Tensor) -> Tensor:
    """All products of two vectors."""
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(f"[outer] dimensions: got {input.ndim} and {vec2.ndim}, expected 1")
    return _C.mul(_C.unsqueeze(input, 1), vec2)


def logsumexp(input: _C.Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """log(sum(exp(input))) along a dimension, without overflow."""
    # x - log_softmax(x) is the wanted number at every element; the largest loses least.
    at = _C.argmax(_C.detach(input), dim, True)
    value = _C.sub(_C.gather(input, dim, at), _C.gather(_C.log_softmax(input, dim), dim, at))
    return value if keepdim else _C.squeeze(value, dim)


def broadcast_to(input: _C.Tensor, size: Sequence[int]) -> Tensor:
    """A view of `input` with repeated elements."""
    return _C.expand(input, tuple(size))


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates of a grid, one tensor per axis."""
    if indexing != "ij":
        raise NotImplementedError(f"[meshgrid] indexing: got {indexing!r}, expected 'ij'")
    axes = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    shape = [axis._numel() for axis in axes]
    grids = []
    for d, axis in enumerate(axes):
        lined = _C.reshape(axis, [shape[d] if i == d else 1 for i in range(len(shape))])
        grids.append(_C.expand(lined, shape))
    return tuple(grids)


def roll(input: _C.Tensor, shifts: int, dims: int) -> Tensor:
    """Elements moved along a dimension; what leaves at one end enters at the other."""
    at = wrap_dim("roll", dims, input.ndim)
    size = input.shape[at]
    cut = (-shifts) % size if size else 0
    parts = (_C.slice(input, at, cut, size, 1), _C.slice(input, at, 0, cut, 1))
    return _C.cat(parts, at)


def diag(input: _C.Tensor) -> Tensor:
    """A matrix with the vector `input` on its diagonal, or the diagonal of a matrix."""
    if input.ndim == 1:
        n = input.shape[0]
        line = _C.arange(0, n, 1, 3, input._device_index)
        return _C.where(_C.eq(_C.unsqueeze(line, 1), line), input, 0)
    at = _C.arange(0, min(input.shape), 1, 3, input._device_index)
    return input[at, at]


# -- comparing --------------------------------------------------------------------------------


def isclose(
    input: _C.Tensor,
    other: _C.Tensor,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    equal_nan: bool = False,
) -> Tensor:
    """Whether |input - other| <= atol + rtol * |other|, by element."""
    same = _C.eq(input, other)
    if not ALL[input._dtype].is_floating_point:
        input, other = _C.to_dtype(input, 7), _C.to_dtype(other, 7)
    gap = _C.abs(_C.sub(input, other))
    bound = _C.add(_C.mul(_C.abs(other), rtol), atol)
    # An infinite bound or gap says nothing: equal infinities are in `same`.
    near = _C.logical_and(_C.le(gap, bound), _C.isfinite(gap))
    near = _C.logical_and(near, _C.isfinite(other))
    out = _C.logical_or(same, near)
    if equal_nan:
        out = _C.logical_or(out, _C.logical_and(_C.isnan(input), _C.isnan(other)))
    return out


def allclose(
    input: _C.Tensor,
    other: _C.Tensor,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    equal_nan: bool = False,
) -> bool:
    """Whether `isclose` holds everywhere."""
    return bool(_C.all(isclose(input, other, rtol, atol, equal_nan), None, False))


def equal(input: _C.Tensor, other: _C.Tensor) -> bool:
    """Whether shapes and all elements are the same."""
    return input.shape == other.shape and bool(_C.all(_C.eq(input, other), None, False))


def is_tensor(obj: object) -> bool:
    """Whether `obj` is a tensor of this package."""
    return isinstance(obj, _C.Tensor)


def numel(input: _C.Tensor) -> int:
    """Number of elements."""
    return input._numel()


def promote_types(type1: dtype, type2: dtype) -> dtype:
    """The dtype of the result of an operation on tensors of these two."""
    a, b = _C.empty((1,), type1.code), _C.empty((1,), type2.code)
    return ALL[_C.add(_C.fill_(a, 0), _C.fill_(b, 0))._dtype]


def result_type(a: _C.Tensor | Scalar, b: _C.Tensor | Scalar) -> dtype:
    """The dtype of ``a + b``."""
    return ALL[_C.add(a, b)._dtype]


def count_nonzero(input: _C.Tensor) -> Tensor:
    """Number of elements that are not 0."""
    return _C.sum(_C.ne(input, 0), None, False)


pi = math.pi
inf = math.inf
nan = math.nan
e = math.e
