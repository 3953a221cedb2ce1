# SPDX-License-Identifier: Apache-2.0
"""Contiguous memory for the data plane, whatever the caller holds.

The core moves contiguous memory. A paceline tensor or an object with the buffer protocol that is
contiguous goes there as it is; another one is copied, and what was received is copied back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
        return _C.empty((n, *like.shape), like._dtype)
    np = sys.modules.get("numpy")
    if np is None or not isinstance(like, np.ndarray):
        raise TypeError(
            f"[{op}] a list of results needs tensors or NumPy arrays: got {type(like).__name__}"
        )
    return np.empty((n, *like.shape), like.dtype)


def stack(op: str, parts: list[Buffer]) -> Buffer:
    """Join equal parts into one piece of memory."""
    joined = empty_stack(op, len(parts), parts[0])
    for index, part in enumerate(parts):
        copy_into(joined[index], part)
    return joined
