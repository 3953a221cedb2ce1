# SPDX-License-Identifier: Apache-2.0
"""Gated linear units: one half of a dimension opens and shuts the other.

``nn.functional`` gives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline import _C

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = ["glu", "swiglu"]


def glu(input: _C.Tensor, dim: int = -1) -> Tensor:
    """The first half along `dim`, times the sigmoid of the second.

    Parameters
    ----------
    input : Tensor
        Floating, of an even size along `dim`.
    dim : int
        The dimension that is halved.

    Returns
    -------
    Tensor
        Shape of `input` with half the size along `dim`.

    Raises
    ------
    RuntimeError
        If `input` is a 0-d tensor or its size along `dim` is odd.
    IndexError
        If there is no such dimension.
    """
    if input.ndim == 0:
        raise RuntimeError("[glu] got a 0-d tensor, expected a dimension to halve")
    if not -input.ndim <= dim < input.ndim:
        raise IndexError(
            f"[glu] dim: got {dim}, expected {-input.ndim} to {input.ndim - 1} for a tensor of "
            f"shape {tuple(input.shape)}"
        )
    size = input.shape[dim]
    if size % 2:
        raise RuntimeError(f"[glu] size of dimension {dim}: got {size}, expected an even number")
    value = _C.slice(input, dim, 0, size // 2, 1)
    return _C.mul(value, _C.sigmoid(_C.slice(input, dim, size // 2, size, 1)))


def swiglu(input: _C.Tensor) -> Tensor:
    """``silu(gate) * up`` of a last dimension that holds gate, then up (Shazeer, 2020).

    The two products of such a network are then one: a `Linear` of twice the width. PyTorch has no
    such function; it reads the packed tensor once, and only that is kept for the gradient.

    Parameters
    ----------
    input : Tensor
        (..., 2 * N), floating.

    Returns
    -------
    Tensor
        (..., N).

    Raises
    ------
    RuntimeError
        If the last size is odd, or the dtype not floating.

    Examples
    --------
    >>> import paceline
    >>> swiglu(paceline.tensor([0.0, 1.0, 5.0, 2.0]))
    tensor([0.0000, 1.4621])
    """
    return _C.swiglu(input)
