# SPDX-License-Identifier: Apache-2.0
"""The tensor's methods that compute: elementwise, reductions, products, in place.

Names, argument order and defaults are PyTorch's. Knows the binding only.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence

from paceline import _C
from paceline.dtypes import dtype, to_code

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor
    from paceline.random import Generator

Scalar = bool | int | float
Dims = int | Sequence[int] | None

# What a reduction along one dimension gives: both can be unpacked or named.
MaxResult = namedtuple("MaxResult", ("values", "indices"))
MinResult = namedtuple("MinResult", ("values", "indices"))
SortResult = namedtuple("SortResult", ("values", "indices"))
TopkResult = namedtuple("TopkResult", ("values", "indices"))


def as_dims(dim: Dims) -> Sequence[int] | None:
    """A dimension argument as the binding takes it."""
    if dim is None:
        return None
    if isinstance(dim, (tuple, list)):
        return tuple(dim) or None
    return (dim,)  # type: ignore[return-value]  # an int, or NumPy's


class MathMethods(_C.Tensor):
    """Computing methods of `Tensor`."""

    __slots__ = ()

    # -- elementwise --------------------------------------------------------------------------

    def neg(self) -> Tensor:
        return _C.neg(self)

    def abs(self) -> Tensor:
        return _C.abs(self)

    def sign(self) -> Tensor:
        return _C.sign(self)

    def exp(self) -> Tensor:
        return _C.exp(self)

    def log(self) -> Tensor:
        return _C.log(self)

    def sqrt(self) -> Tensor:
        return _C.sqrt(self)

    def rsqrt(self) -> Tensor:
        return _C.rsqrt(self)

    def reciprocal(self) -> Tensor:
        return _C.reciprocal(self)

    def square(self) -> Tensor:
        return _C.square(self)

    def sin(self) -> Tensor:
        return _C.sin(self)

    def cos(self) -> Tensor:
        return _C.cos(self)

    def tanh(self) -> Tensor:
        return _C.tanh(self)

    def sigmoid(self) -> Tensor:
        return _C.sigmoid(self)

    def relu(self) -> Tensor:
        return _C.relu(self)

    def erf(self) -> Tensor:
        return _C.erf(self)

    def floor(self) -> Tensor:
        return _C.floor(self)

    def ceil(self) -> Tensor:
        return _C.ceil(self)

    def round(self) -> Tensor:
        return _C.round(self)

    def isnan(self) -> Tensor:
        return _C.isnan(self)

    def isfinite(self) -> Tensor:
        return _C.isfinite(self)

    def isinf(self) -> Tensor:
        return _C.logical_not(_C.logical_or(_C.isfinite(self), _C.isnan(self)))

    def logical_not(self) -> Tensor:
        return _C.logical_not(self)

    def logical_and(self, other: _C.Tensor) -> Tensor:
        return _C.logical_and(self, other)

    def logical_or(self, other: _C.Tensor) -> Tensor:
        return _C.logical_or(self, other)

    def logical_xor(self, other: _C.Tensor) -> Tensor:
        return _C.logical_xor(self, other)

    def add(self, other: _C.Tensor | Scalar, *, alpha: Scalar = 1) -> Tensor:
        return _C.add(self, other if alpha == 1 else _scaled(other, alpha))

    def sub(self, other: _C.Tensor | Scalar, *, alpha: Scalar = 1) -> Tensor:
        return _C.sub(self, other if alpha == 1 else _scaled(other, alpha))

    def mul(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.mul(self, other)

    def div(self, other: _C.Tensor | Scalar, *, rounding_mode: str | None = None) -> Tensor:
        if rounding_mode is None:
            return _C.div(self, other)
        if rounding_mode == "floor":
            return _C.floor_divide(self, other)
        raise NotImplementedError(
            f"[div] rounding_mode: got {rounding_mode!r}, expected None or 'floor'"
        )

    def pow(self, exponent: _C.Tensor | Scalar) -> Tensor:
        return _C.pow(self, exponent)

    def remainder(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.remainder(self, other)

    def floor_divide(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.floor_divide(self, other)

    def maximum(self, other: _C.Tensor) -> Tensor:
        return _C.maximum(self, other)

    def minimum(self, other: _C.Tensor) -> Tensor:
        return _C.minimum(self, other)

    def eq(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.eq(self, other)

    def ne(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.ne(self, other)

    def lt(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.lt(self, other)

    def le(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.le(self, other)

    def gt(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.gt(self, other)

    def ge(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.ge(self, other)

    def clamp(self, min: Scalar | None = None, max: Scalar | None = None) -> Tensor:
        if min is None and max is None:
            raise ValueError("[clamp] got neither min nor max, expected at least one")
        return _C.clamp(self, min, max)

    clip = clamp

    def masked_fill(self, mask: _C.Tensor, value: _C.Tensor | Scalar) -> Tensor:
        return _C.where(mask, value, self)

    def where(self, condition: _C.Tensor, other: _C.Tensor | Scalar) -> Tensor:
        return _C.where(condition, self, other)

    # -- reductions ---------------------------------------------------------------------------

    def sum(
        self,
        dim: Dims = None,
        keepdim: bool = False,
        *,
        axis: Dims = None,
        dtype: dtype | None = None,
    ) -> Tensor:
        return _C.sum(_as(self, dtype), as_dims(dim if axis is None else axis), keepdim)

    def mean(
        self,
        dim: Dims = None,
        keepdim: bool = False,
        *,
        axis: Dims = None,
        dtype: dtype | None = None,
    ) -> Tensor:
        return _C.mean(_as(self, dtype), as_dims(dim if axis is None else axis), keepdim)

    def prod(
        self, dim: Dims = None, keepdim: bool = False, *, dtype: dtype | None = None
    ) -> Tensor:
        return _C.prod(_as(self, dtype), as_dims(dim), keepdim)

    def amax(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return _C.amax(self, as_dims(dim), keepdim)

    def amin(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return _C.amin(self, as_dims(dim), keepdim)

    def max(
        self, dim: int | _C.Tensor | None = None, keepdim: bool = False, *, axis: int | None = None
    ) -> Any:
        """The largest element, or (values, indices) along `dim`, or elementwise with a tensor."""
        dim = dim if axis is None else axis
        if dim is None:
            return _C.amax(self, None, False)
        if isinstance(dim, _C.Tensor):
            return _C.maximum(self, dim)
        return MaxResult(*_pick(self, _C.argmax(self, dim, True), dim, keepdim))

    def min(
        self, dim: int | _C.Tensor | None = None, keepdim: bool = False, *, axis: int | None = None
    ) -> Any:
        """The smallest element, or (values, indices) along `dim`, or elementwise with a tensor."""
        dim = dim if axis is None else axis
        if dim is None:
            return _C.amin(self, None, False)
        if isinstance(dim, _C.Tensor):
            return _C.minimum(self, dim)
        return MinResult(*_pick(self, _C.argmin(self, dim, True), dim, keepdim))

    def argmax(
        self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None
    ) -> Tensor:
        return _C.argmax(self, dim if axis is None else axis, keepdim)

    def argmin(
        self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None
    ) -> Tensor:
        return _C.argmin(self, dim if axis is None else axis, keepdim)

    def any(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return _C.any(self, as_dims(dim), keepdim)

    def all(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return _C.all(self, as_dims(dim), keepdim)

    def cumsum(self, dim: int) -> Tensor:
        return _C.cumsum(self, dim)

    def sort(self, dim: int = -1, descending: bool = False) -> SortResult:
        return SortResult(*_C.sort(self, dim, descending))

    def argsort(self, dim: int = -1, descending: bool = False) -> Tensor:
        return _C.sort(self, dim, descending)[1]

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> TopkResult:
        size = self.shape[dim] if self.ndim else 1
        if not 0 <= k <= size:
            raise ValueError(f"[topk] k: got {k}, expected 0 to {size}")
        values, indices = _C.sort(self, dim, largest)
        return TopkResult(_C.slice(values, dim, 0, k, 1), _C.slice(indices, dim, 0, k, 1))

    def var(
        self,
        dim: Dims | bool = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: int | None = None,
    ) -> Tensor:
        """Variance; `correction` (1 where `unbiased`) is subtracted from the count."""
        if isinstance(dim, bool):  # var(unbiased)
            unbiased = dim
            dim = None
        dims = as_dims(dim)
        count = math.prod(self.shape if dims is None else [self.shape[d] for d in dims])
        lost = int(unbiased) if correction is None else correction
        centred = _C.sub(self, _C.mean(self, dims, True))
        total = _C.sum(_C.square(centred), dims, keepdim)
        left = max(count - lost, 0)
        return _C.div(total, left) if left else _C.div(total, 0.0)

    def std(
        self,
        dim: Dims | bool = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: int | None = None,
    ) -> Tensor:
        return _C.sqrt(self.var(dim, unbiased, keepdim, correction=correction))

    def norm(
        self, p: float | str | None = "fro", dim: Dims = None, keepdim: bool = False
    ) -> Tensor:
        """Vector norm over `dim` (all elements by default)."""
        dims = as_dims(dim)
        if p is None or p == "fro" or p == 2:
            return _C.sqrt(_C.sum(_C.square(self), dims, keepdim))
        if isinstance(p, str):
            raise NotImplementedError(f"[norm] p: got {p!r}, expected 'fro' or a number")
        if p == math.inf:
            return _C.amax(_C.abs(self), dims, keepdim)
        if p == 1:
            return _C.sum(_C.abs(self), dims, keepdim)
        return _C.pow(_C.sum(_C.pow(_C.abs(self), p), dims, keepdim), 1.0 / p)

    # -- products -----------------------------------------------------------------------------

    def matmul(self, other: _C.Tensor) -> Tensor:
        return _C.matmul(self, other)

    def mm(self, mat2: _C.Tensor) -> Tensor:
        return _product("mm", self, mat2, 2, 2)

    def bmm(self, mat2: _C.Tensor) -> Tensor:
        return _product("bmm", self, mat2, 3, 3)

    def mv(self, vec: _C.Tensor) -> Tensor:
        return _product("mv", self, vec, 2, 1)

    def dot(self, other: _C.Tensor) -> Tensor:
        return _product("dot", self, other, 1, 1)

    def softmax(self, dim: int, dtype: dtype | None = None) -> Tensor:
        return _C.softmax(_as(self, dtype), dim)

    def log_softmax(self, dim: int, dtype: dtype | None = None) -> Tensor:
        return _C.log_softmax(_as(self, dtype), dim)

    # -- in place -----------------------------------------------------------------------------

    def add_(self, other: _C.Tensor | Scalar, *, alpha: Scalar = 1) -> Tensor:
        return _C.add_(self, other, alpha)

    def sub_(self, other: _C.Tensor | Scalar, *, alpha: Scalar = 1) -> Tensor:
        return _C.add_(self, other, -alpha)

    def mul_(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.mul_(self, other)

    def div_(self, other: _C.Tensor | Scalar) -> Tensor:
        return _C.div_(self, other)

    def copy_(self, src: _C.Tensor, non_blocking: bool = False) -> Tensor:
        return _C.copy_(self, src)

    def fill_(self, value: Scalar | _C.Tensor) -> Tensor:
        if isinstance(value, _C.Tensor):
            return _C.copy_(self, value)
        return _C.fill_(self, value)

    def zero_(self) -> Tensor:
        return _C.fill_(self, 0)

    def clamp_(self, min: Scalar | None = None, max: Scalar | None = None) -> Tensor:
        return _C.copy_(self, self.clamp(min, max))

    def masked_fill_(self, mask: _C.Tensor, value: _C.Tensor | Scalar) -> Tensor:
        return _C.copy_(self, _C.where(mask, value, self))

    # Random fills give self back as the other in-place methods do.
    def uniform_(
        self, from_: float = 0.0, to: float = 1.0, *, generator: Generator | None = None
    ) -> Tensor:
        _C.uniform_(self, from_, to, generator)
        return self  # type: ignore[return-value]

    def normal_(
        self, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
    ) -> Tensor:
        _C.normal_(self, mean, std, generator)
        return self  # type: ignore[return-value]


def _as(t: _C.Tensor, d: dtype | None) -> _C.Tensor:
    return t if d is None else _C.to_dtype(t, to_code(d))


def _scaled(other: _C.Tensor | Scalar, alpha: Scalar) -> _C.Tensor | Scalar:
    return _C.mul(other, alpha) if isinstance(other, _C.Tensor) else other * alpha


def _pick(t: _C.Tensor, index: _C.Tensor, dim: int, keepdim: bool) -> tuple[_C.Tensor, _C.Tensor]:
    # Values through gather, so that the gradient goes to the elements that were picked.
    if t.ndim == 0:
        return _C.reshape(t, ()), _C.reshape(index, ())
    values = _C.gather(t, dim, index)
    if keepdim:
        return values, index
    return _C.squeeze(values, dim), _C.squeeze(index, dim)


def _product(op: str, a: _C.Tensor, b: _C.Tensor, na: int, nb: int) -> Tensor:
    if a.ndim != na or b.ndim != nb:
        raise RuntimeError(
            f"[{op}] dimensions: got {a.ndim} and {b.ndim} ({a.shape} and {b.shape}), "
            f"expected {na} and {nb}"
        )
    return _C.matmul(a, b)
