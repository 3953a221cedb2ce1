# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al., 2021); ``nn.functional`` gives the functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paceline import _C, dtypes
from paceline._device import place

if TYPE_CHECKING:
    from paceline._factories import Where
    from paceline._tensor import Tensor
    from paceline.dtypes import dtype

__all__ = ["rotary_embedding", "rotary_tables"]


def rotary_embedding(input: _C.Tensor, cos: _C.Tensor, sin: _C.Tensor, position: int = 0) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by an angle that grows with its position.

    The pairs are those of Hugging Face's Llama (``rotate_half``). Queries and keys are taken as
    attention takes them, views of a packed projection too, without a copy.

    Parameters
    ----------
    input : Tensor
        (B, H, T, D), (H, T, D) or (T, D), floating, D even.
    cos, sin : Tensor
        (positions, D / 2), of `rotary_tables`. Hugging Face's tables of width D hold each number
        twice: pass ``cos[:, : D // 2]``. They get no gradient.
    position : int
        The position of the first row, where keys and values of earlier ones are cached.

    Returns
    -------
    Tensor
        Shape and dtype of `input`; computed in float32 (float64 for float64), rounded once.

    Raises
    ------
    RuntimeError
        If a shape or dtype does not fit.
    IndexError
        If a row's position is outside the tables.
    """
    return _C.rotary_embedding(input, cos, sin, position)


def rotary_tables(
    length: int,
    dim: int,
    base: float = 10000.0,
    *,
    device: Where = None,
    dtype: dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``position * base ** (-2 i / dim)`` for `rotary_embedding`.

    Parameters
    ----------
    length : int
        How many positions.
    dim : int
        Width of a head, an even number.
    base : float
        The slowest pair turns by nearly ``1 / base`` of a radian a position.
    device : device, optional
        Where to put them.
    dtype : dtype, optional
        Theirs, float32 by default. They are computed in float64 and rounded once.

    Returns
    -------
    tuple of Tensor
        Two of (length, dim / 2).

    Raises
    ------
    ValueError
        If `dim` is odd or not positive, `length` negative, or `base` not positive.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"[rotary_tables] dim: got {dim}, expected an even number above 0")
    if length < 0:
        raise ValueError(f"[rotary_tables] length: got {length}, expected 0 or more")
    if not base > 0:
        raise ValueError(f"[rotary_tables] base: got {base}, expected more than 0")
    at, wide = place("rotary_tables", device), dtypes.float64.code
    before = _C.set_autocast(-1), _C.set_grad_enabled(False)
    try:
        pairs = _C.arange(0, dim // 2, 1, wide, at)
        speeds = _C.exp(_C.mul(pairs, -2 * math.log(base) / dim))
        positions = _C.unsqueeze(_C.arange(0, length, 1, wide, at), 1)
        angles = _C.mul(positions, speeds)
        code = dtypes.to_code(dtype, dtypes.float32.code)
        return _C.to_dtype(_C.cos(angles), code), _C.to_dtype(_C.sin(angles), code)
    finally:
        _C.set_autocast(before[0])
        _C.set_grad_enabled(before[1])
