# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm as functions, alone and with the sum before them.

Importable from ``functional.py``, where PyTorch has the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paceline import _C
from paceline.dtypes import float64

if TYPE_CHECKING:
    from paceline._tensor import Tensor

# PyTorch's: what numbers are added up in decides, so bfloat16 and float16 have float32's.
_EPSILON, _EPSILON_OF_DOUBLE = 2.0**-23, 2.0**-52


def _dims(op: str, input: _C.Tensor, normalized_shape: Sequence[int]) -> int:
    n = len(normalized_shape)
    if n == 0 or tuple(input.shape[-n:]) != tuple(normalized_shape):
        raise RuntimeError(
            f"[{op}] last dimensions: got input of shape {tuple(input.shape)}, "
            f"expected it to end in {tuple(normalized_shape)}"
        )
    return n


def _dims_of_two(
    op: str, input: _C.Tensor, residual: _C.Tensor, normalized_shape: Sequence[int]
) -> int:
    if tuple(input.shape) != tuple(residual.shape):
        raise RuntimeError(
            f"[{op}] input and residual: got shapes {tuple(input.shape)} and "
            f"{tuple(residual.shape)}, expected one shape; expand one of them first"
        )
    return _dims(op, input, normalized_shape)


def _epsilon(eps: float | None, *inputs: _C.Tensor) -> float:
    if eps is not None:
        return eps
    double = any(t._dtype == float64.code for t in inputs)
    return _EPSILON_OF_DOUBLE if double else _EPSILON


def layer_norm(
    input: _C.Tensor,
    normalized_shape: Sequence[int],
    weight: _C.Tensor | None = None,
    bias: _C.Tensor | None = None,
    eps: float = 1e-05,
) -> Tensor:
    r"""Mean 0 and variance 1 over the last dimensions, then ``* weight + bias``.

    Parameters
    ----------
    input : Tensor
        (..., \*normalized_shape), floating.
    normalized_shape : sequence of int
        The last dimensions, over which mean and variance are taken.
    weight, bias : Tensor, optional
        Of shape `normalized_shape`.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Shape and dtype of `input`; float32 under autocast.

    Raises
    ------
    RuntimeError
        If `input` does not end in `normalized_shape`.
    """
    return _C.layer_norm(input, weight, bias, _dims("layer_norm", input, normalized_shape), eps)


def rms_norm(
    input: _C.Tensor,
    normalized_shape: Sequence[int],
    weight: _C.Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    r"""``input / sqrt(mean(input ** 2) + eps)`` over the last dimensions, then ``* weight``.

    Parameters
    ----------
    input : Tensor
        (..., \*normalized_shape), floating.
    normalized_shape : sequence of int
        The last dimensions, over which the mean is taken.
    weight : Tensor, optional
        Of shape `normalized_shape`.
    eps : float, optional
        Added to the mean of squares; by default the distance from 1 to the next number of the
        dtype that is computed in, float32 or float64.

    Returns
    -------
    Tensor
        Shape and dtype of `input`; float32 under autocast.

    Raises
    ------
    RuntimeError
        If `input` does not end in `normalized_shape`.
    """
    n = _dims("rms_norm", input, normalized_shape)
    return _C.rms_norm(input, weight, n, _epsilon(eps, input))


def fused_add_layer_norm(
    input: _C.Tensor,
    residual: _C.Tensor,
    normalized_shape: Sequence[int],
    weight: _C.Tensor | None = None,
    bias: _C.Tensor | None = None,
    eps: float = 1e-05,
) -> tuple[Tensor, Tensor]:
    r"""``sum = residual + input`` and its layer norm, in one pass over memory.

    Both results are what the two calls give, bit for bit, and have the gradients of both. PyTorch
    has no such function.

    Parameters
    ----------
    input, residual : Tensor
        (..., \*normalized_shape), floating, of one shape.
    normalized_shape, weight, bias, eps
        As in `layer_norm`.

    Returns
    -------
    normed, sum : Tensor
        ``layer_norm(sum, ...)``, and the sum, in the dtype of ``residual + input``: under autocast
        a float32 residual stays float32 where `input` comes from a product in bfloat16.

    Raises
    ------
    RuntimeError
        If the two have different shapes or do not end in `normalized_shape`.
    """
    n = _dims_of_two("fused_add_layer_norm", input, residual, normalized_shape)
    return _C.add_layer_norm(input, residual, weight, bias, n, eps)


def fused_add_rms_norm(
    input: _C.Tensor,
    residual: _C.Tensor,
    normalized_shape: Sequence[int],
    weight: _C.Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""``sum = residual + input`` and its RMS norm, in one pass over memory.

    Both results are what the two calls give, bit for bit, and have the gradients of both. PyTorch
    has no such function.

    Parameters
    ----------
    input, residual : Tensor
        (..., \*normalized_shape), floating, of one shape.
    normalized_shape, weight, eps
        As in `rms_norm`.

    Returns
    -------
    normed, sum : Tensor
        ``rms_norm(sum, ...)``, and the sum, in the dtype of ``residual + input``.

    Raises
    ------
    RuntimeError
        If the two have different shapes or do not end in `normalized_shape`.
    """
    n = _dims_of_two("fused_add_rms_norm", input, residual, normalized_shape)
    return _C.add_rms_norm(input, residual, weight, n, _epsilon(eps, input, residual))
