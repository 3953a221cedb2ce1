# SPDX-License-Identifier: Apache-2.0
"""The tensor's methods that rearrange: views, joins, splits, indexing.

Names, argument order and defaults are PyTorch's. Knows the binding only.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline import _C
from paceline.dtypes import dtype

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor


def as_shape(op: str, sizes: tuple[Any, ...]) -> Sequence[int]:
    """Sizes that may come as one sequence or as separate numbers."""
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        if not isinstance(sizes[0], (tuple, list)):
            # Anything with __index__, such as a NumPy integer; the binding checks.
            return (_index(op, sizes[0]),)
        sizes = tuple(sizes[0])
    return sizes


def _index(op: str, size: Any) -> int:
    try:
        return int(size.__index__())
    except AttributeError:
        raise TypeError(f"[{op}] size: got {size!r}, expected integers") from None


def wrap_dim(op: str, dim: int, ndim: int) -> int:
    """`dim` counted from the front."""
    span = max(ndim, 1)
    if not -span <= dim < span:
        raise IndexError(f"[{op}] dim: got {dim}, expected {-span} to {span - 1}")
    return dim + span if dim < 0 else dim


class ShapeMethods(_C.Tensor):
    """Rearranging methods of `Tensor`."""

    __slots__ = ()

    # -- views --------------------------------------------------------------------------------

    def view(self, *shape: Any) -> Tensor:
        if len(shape) == 1 and isinstance(shape[0], dtype):
            raise NotImplementedError(
                f"[view] the same bytes as another dtype are not built: got {shape[0]!r}, "
                "expected sizes; to convert, use tensor.to(dtype)"
            )
        return _C.view(self, as_shape("view", shape))

    def reshape(self, *shape: Any) -> Tensor:
        return _C.reshape(self, as_shape("reshape", shape))

    def view_as(self, other: _C.Tensor) -> Tensor:
        return _C.view(self, other.shape)

    def reshape_as(self, other: _C.Tensor) -> Tensor:
        return _C.reshape(self, other.shape)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        return _C.transpose(self, dim0, dim1)

    def permute(self, *dims: Any) -> Tensor:
        return _C.permute(self, as_shape("permute", dims))

    def t(self) -> Tensor:
        if self.ndim > 2:
            raise RuntimeError(f"[t] dimensions: got {self.ndim}, expected 2 or fewer")
        return _C.transpose(self, 0, 1) if self.ndim == 2 else _C.reshape(self, self.shape)

    @property
    def T(self) -> Tensor:  # noqa: N802
        return _C.permute(self, tuple(range(self.ndim - 1, -1, -1)))

    @property
    def mT(self) -> Tensor:  # noqa: N802
        return _C.transpose(self, -2, -1)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        first = wrap_dim("flatten", start_dim, self.ndim)
        last = wrap_dim("flatten", end_dim, self.ndim)
        if first > last:
            raise RuntimeError(f"[flatten] start_dim {start_dim} comes after end_dim {end_dim}")
        if first == last and self.ndim:
            return _C.reshape(self, self.shape)
        shape = self.shape
        joined = 1
        for size in shape[first : last + 1]:
            joined *= size
        return _C.reshape(self, (*shape[:first], joined, *shape[last + 1 :]))

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        at = wrap_dim("unflatten", dim, self.ndim)
        return _C.reshape(self, (*self.shape[:at], *sizes, *self.shape[at + 1 :]))

    def unsqueeze(self, dim: int) -> Tensor:
        return _C.unsqueeze(self, dim)

    def squeeze(self, dim: int | None = None) -> Tensor:
        return _C.squeeze(self, dim)

    def expand(self, *sizes: Any) -> Tensor:
        return _C.expand(self, as_shape("expand", sizes))

    def expand_as(self, other: _C.Tensor) -> Tensor:
        return _C.expand(self, other.shape)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        size = self.shape[dim]
        if not 0 <= start <= size - length or length < 0:
            raise RuntimeError(
                f"[narrow] range: got {start} to {start + length}, expected within 0 to {size}"
            )
        return _C.slice(self, dim, start, start + length, 1)

    def select(self, dim: int, index: int) -> Tensor:
        return _C.select(self, dim, index)

    def contiguous(self) -> Tensor:
        return _C.contiguous(self)

    # -- copies -------------------------------------------------------------------------------

    def repeat(self, *sizes: Any) -> Tensor:
        """Copies side by side: dimension d becomes sizes[d] times as long."""
        times = as_shape("repeat", sizes)
        if len(times) < self.ndim:
            raise RuntimeError(f"[repeat] got {len(times)} sizes, expected at least {self.ndim}")
        shape = (1,) * (len(times) - self.ndim) + tuple(self.shape)
        paired: list[int] = []
        wide: list[int] = []
        for count, size in zip(times, shape, strict=True):
            paired += [1, size]
            wide += [count, size]
        joined = [c * s for c, s in zip(times, shape, strict=True)]
        return _C.reshape(_C.expand(_C.reshape(self, paired), wide), joined)

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        size = self.shape[dim]
        if isinstance(split_size, int):
            if split_size < 1:
                raise RuntimeError(f"[split] split_size: got {split_size}, expected 1 or more")
            lengths = [min(split_size, size - at) for at in range(0, max(size, 1), split_size)]
        else:
            lengths = list(split_size)
            if sum(lengths) != size:
                raise RuntimeError(f"[split] sizes: got {lengths}, expected a sum of {size}")
        parts: list[Tensor] = []
        at = 0
        for length in lengths:
            parts.append(_C.slice(self, dim, at, at + length, 1))
            at += length
        return tuple(parts)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        if chunks < 1:
            raise RuntimeError(f"[chunk] chunks: got {chunks}, expected 1 or more")
        size = self.shape[dim]
        return self.split(max(1, -(-size // chunks)), dim)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        return tuple(_C.select(self, dim, i) for i in range(self.shape[dim]))

    # -- picking ------------------------------------------------------------------------------

    def index_select(self, dim: int, index: _C.Tensor) -> Tensor:
        return _C.index_select(self, dim, index)

    def gather(self, dim: int, index: _C.Tensor) -> Tensor:
        return _C.gather(self, dim, index)

    def masked_select(self, mask: _C.Tensor) -> Tensor:
        return self[mask]

    def nonzero(self) -> Tensor:
        return _C.nonzero(self)

    def flip(self, *dims: Any) -> Tensor:
        out: Any = self
        for dim in as_shape("flip", dims):
            order = _C.arange(self.shape[dim] - 1, -1, -1, 3, self._device_index)
            out = _C.index_select(out, dim, order)
        return _C.clone(self) if out is self else out

    def tril(self, diagonal: int = 0) -> Tensor:
        return _C.where(_triangle(self, diagonal, True), self, 0)

    def triu(self, diagonal: int = 0) -> Tensor:
        return _C.where(_triangle(self, diagonal, False), self, 0)

    def diagonal(self) -> Tensor:
        """The main diagonal of a matrix, as a copy."""
        if self.ndim != 2:
            raise RuntimeError(f"[diagonal] dimensions: got {self.ndim}, expected 2")
        at = _C.arange(0, min(self.shape), 1, 3, self._device_index)
        return self[at, at]


def _triangle(t: _C.Tensor, diagonal: int, lower: bool) -> _C.Tensor:
    if t.ndim < 2:
        raise RuntimeError(f"[tril, triu] dimensions: got {t.ndim}, expected 2 or more")
    rows = _C.unsqueeze(_C.arange(0, t.shape[-2], 1, 3, t._device_index), 1)
    limit = _C.add(rows, diagonal)
    columns = _C.arange(0, t.shape[-1], 1, 3, t._device_index)
    return _C.le(columns, limit) if lower else _C.ge(columns, limit)
