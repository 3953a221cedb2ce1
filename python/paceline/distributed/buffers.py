# SPDX-License-Identifier: Apache-2.0
"""Contiguous memory for the data plane, whatever the caller holds.

The core moves contiguous memory. A paceline tensor or an object with the buffer protocol that is
contiguous goes there as it is; another one is copied, and what was received is copied back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from paceline import _C

Buffer = Any  # a paceline tensor, or an object with the buffer protocol
CopyBack = Callable[[], None]


def contiguous(op: str, obj: Buffer) -> tuple[Buffer, CopyBack | None]:
    """Give memory that the core can use in place of `obj`, and how to copy it back.

    Returns
    -------
    memory : object
        `obj` itself where it is contiguous.
    copy_back : callable or None
        To be called when `memory` holds a result; None where it is `obj` itself.

    Raises
    ------
    TypeError
        It is neither a tensor nor a buffer.
    """
    if isinstance(obj, _C.Tensor):
        if obj._is_contiguous():
            return obj, None
        packed = _C.contiguous(obj)
        return packed, lambda: copy_tensor(obj, packed)
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(
            f"[{op}] this cannot be sent: got {type(obj).__name__}, expected a paceline tensor or "
            "an object with the buffer protocol, such as a NumPy array"
        ) from None
    if view.c_contiguous:
        return obj, None
    np = sys.modules.get("numpy")
    if np is None or not isinstance(obj, np.ndarray):
        raise TypeError(f"[{op}] a {type(obj).__name__} must be contiguous")
    array = np.ascontiguousarray(obj)

    def back() -> None:
        obj[...] = array

    return array, back


def copy_tensor(target: _C.Tensor, source: _C.Tensor) -> None:
    """Copy in place without touching the graph, as PyTorch's collectives do."""
    before = _C.set_grad_enabled(False)
    try:
        _C.copy_(target, source)
    finally:
        _C.set_grad_enabled(before)


def copy_into(target: Buffer, source: Buffer) -> None:
    """Copy a result of the same kind."""
    if isinstance(target, _C.Tensor):
        copy_tensor(target, source)
    else:
        target[...] = source


def empty_stack(op: str, n: int, like: Buffer) -> Buffer:
    """Memory for `n` copies of `like`: a tensor, or a NumPy array."""
    if isinstance(like, _C.Tensor):
        return _C.empty((n, *like.shape), like._dtype, like._device_index)
    np = sys.modules.get("numpy")
    if np is None or not isinstance(like, np.ndarray):
        raise TypeError(
            f"[{op}] a list of results needs tensors or NumPy arrays: got {type(like).__name__}"
        )
    return np.empty((n, *like.shape), like.dtype)


def empty_flat(op: str, n: int, like: Buffer) -> Buffer:
    """Memory for `n` elements of the kind of `like`: a tensor, or a NumPy array."""
    if isinstance(like, _C.Tensor):
        return _C.empty((n,), like._dtype, like._device_index)
    np = sys.modules["numpy"]
    return np.empty(n, like.dtype)


def stack(op: str, parts: list[Buffer]) -> Buffer:
    """Join equal parts into one piece of memory."""
    joined = empty_stack(op, len(parts), parts[0])
    for index, part in enumerate(parts):
        copy_into(joined[index], part)
    return joined


def split_rows(
    world: int, buffer: Buffer, sizes: Sequence[int] | None, what: str
) -> tuple[list[int], int]:
    """Split the first dimension of `buffer` for `world` ranks: rows of each, elements of a row."""
    shape = tuple(getattr(buffer, "shape", None) or memoryview(buffer).shape or ())
    if not shape:
        raise ValueError(f"[all_to_all] {what} needs a first dimension to split: got shape ()")
    row = 1
    for dim in shape[1:]:
        row *= dim
    if sizes is None or len(sizes) == 0:
        if shape[0] % world:
            raise ValueError(
                f"[all_to_all] {what} cannot be split equally: got {shape[0]} rows for {world} "
                f"ranks; give {what}_split_sizes"
            )
        return [shape[0] // world] * world, row
    if len(sizes) != world or sum(sizes) != shape[0]:
        raise ValueError(
            f"[all_to_all] {what}_split_sizes do not fit: got {list(sizes)}, expected {world} "
            f"sizes that sum to {shape[0]}"
        )
    return list(sizes), row
