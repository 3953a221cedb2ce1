# SPDX-License-Identifier: Apache-2.0
"""Indexing with tensors, lists and masks, composed from operators; plain indices are in C.

A masked or integer index becomes rows of a table: the indexed dimensions are brought together,
merged into one, and taken by one integer index computed from all of them.
"""

from __future__ import annotations

from typing import Any

from paceline import _C, dtypes
from paceline._tensor import Tensor

_BOOL = dtypes.bool_.code
_INT64 = dtypes.int64.code


def _as_index(item: Any) -> Any:
    """A list, array or bool as a tensor; tensors and plain items as they are."""
    if isinstance(item, Tensor) or item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, bool):
        raise NotImplementedError("[index] a single bool as an index is not built: use a mask")
    if isinstance(item, list | tuple):
        return _C.from_data(item, -1 if item else _INT64)
    if hasattr(item, "__array__") or hasattr(item, "__buffer__"):
        import paceline

        return paceline.as_tensor(item)
    return item


def _expand_masks(items: list[Any]) -> list[Any]:
    """Masks as the integer indices of their true elements, one per dimension of the mask."""
    out: list[Any] = []
    for item in items:
        if isinstance(item, Tensor) and item._dtype == _BOOL:
            where = _C.nonzero(item)
            out += [_C.select(where, 1, d) for d in range(item.ndim)]
        else:
            out.append(item)
    return out


def _fill_ellipsis(items: list[Any], ndim: int) -> list[Any]:
    used = sum(item is not None and item is not Ellipsis for item in items)
    if used > ndim:
        raise IndexError(f"[index] too many indices for a tensor of dimension {ndim}: got {used}")
    full = [slice(None)] * (ndim - used)
    for at, item in enumerate(items):
        if item is Ellipsis:
            return items[:at] + full + items[at + 1 :]
    return items + full


def _resolve(x: Tensor, index: Any) -> tuple[Tensor, dict[int, Tensor]]:
    """x after its plain items, and the integer tensors left, by dimension."""
    raw = list(index) if isinstance(index, tuple) else [index]
    items = [_as_index(item) for item in raw]
    # Indices may come from the CPU, as lists do.
    items = [
        _C.to_device(item, x._device_index, False) if isinstance(item, Tensor) else item
        for item in items
    ]
    masks = [item for item in items if isinstance(item, Tensor) and item._dtype == _BOOL]
    spread = _expand_masks(items)
    filled = _fill_ellipsis(spread, x.ndim)
    _check_masks(x, masks, items)
    plain = tuple(slice(None) if isinstance(i, Tensor) else i for i in filled)
    picked: dict[int, Tensor] = {}
    dim = 0
    for item in filled:
        if isinstance(item, Tensor):
            picked[dim] = item
        dim += not isinstance(item, int)
    return x[plain], picked


def _check_masks(x: Tensor, masks: list[Tensor], items: list[Any]) -> None:
    if len(masks) == 1 and len(items) == 1:
        mask = masks[0]
        if mask.shape != x.shape[: mask.ndim]:
            raise IndexError(
                f"[index] the mask's shape {list(mask.shape)} does not match the tensor's "
                f"{list(x.shape)}"
            )


def _flat_index(shape: tuple[int, ...], picked: dict[int, Tensor]) -> Tensor:
    """One index into the merged dimensions, negative values wrapped and bounds checked."""
    flat: Tensor | None = None
    for dim, index in sorted(picked.items()):
        if index.dtype.is_floating_point:
            raise IndexError(f"[index] an index tensor must be of integers, got {index.dtype}")
        size, wide = shape[dim], _C.to_dtype(index, _INT64)
        if wide._numel() and (int(wide.max()) >= size or int(wide.min()) < -size):
            raise IndexError(f"[index] out of bounds for dimension {dim} with size {size}")
        wrapped = _C.where(wide < 0, wide + size, wide)
        flat = wrapped if flat is None else flat * size + wrapped
    assert flat is not None
    return flat


def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` where the index holds tensors, lists, arrays or masks.

    Raises
    ------
    IndexError
        If an index is out of bounds or a mask does not fit.
    """
    base, picked = _resolve(x, index)
    if not picked:
        return base
    dims = sorted(picked)
    rest = [d for d in range(base.ndim) if d not in picked]
    table = _C.permute(base, dims + rest)
    table = _C.reshape(
        table, [-1 if base._numel() else _product(base.shape, dims)] + [base.shape[d] for d in rest]
    )
    rows = _C.embedding(table, _flat_index(base.shape, picked), -1)
    if dims != list(range(dims[0], dims[-1] + 1)):
        return rows  # NumPy's rule: indices that do not lie together put their result in front
    lead = rows.ndim - len(rest)
    before = [lead + k for k, d in enumerate(rest) if d < dims[0]]
    after = [lead + k for k, d in enumerate(rest) if d > dims[0]]
    return _C.permute(rows, before + list(range(lead)) + after)


def _product(shape: tuple[int, ...], dims: list[int]) -> int:
    total = 1
    for d in dims:
        total *= shape[d]
    return total


def setitem(x: Tensor, index: Any, value: Any) -> Tensor:
    """``x[index] = value`` where the index holds tensors or masks, or the value is a list.

    Raises
    ------
    IndexError
        If an index is out of bounds or a mask does not fit.
    NotImplementedError
        If a gradient would have to follow the assignment.
    """
    base, picked = _resolve(x, index)
    import paceline

    if not isinstance(value, Tensor):
        value = paceline.as_tensor(value, dtype=x.dtype, device=x.device)
    if _C.is_grad_enabled() and (value.requires_grad or x.requires_grad):
        raise NotImplementedError(
            "[setitem] assignment through an index tensor is not tracked by autograd: use "
            "paceline.where, or no_grad()"
        )
    if not picked:
        _C.copy_(base, value)
        return x
    rest = [d for d in range(base.ndim) if d not in picked]
    front = _C.permute(base, sorted(picked) + rest)
    shape = _C.embedding(
        _C.empty([_product(base.shape, sorted(picked)), 0], _BOOL, base._device_index),
        _flat_index(base.shape, picked),
        -1,
    ).shape[:-1]
    columns = [_C.reshape(_C.expand(i, shape), [-1]).tolist() for _, i in sorted(picked.items())]
    source = _C.expand(value, [*shape, *(base.shape[d] for d in rest)])
    source = _C.reshape(source, [len(columns[0]), *(base.shape[d] for d in rest)])
    for row, where in enumerate(zip(*columns, strict=True)):
        _C.copy_(front[where], source[row])
    return x
