# SPDX-License-Identifier: Apache-2.0
"""Activation functions and softmax; ``nn.functional`` gives them under PyTorch's names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paceline import _C
from paceline.dtypes import dtype, to_code

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = [
    "gelu",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "placed",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def placed(input: _C.Tensor, out: Tensor, inplace: bool) -> Tensor:
    """Give `out`, in the memory of `input` where asked for and no gradient is recorded.

    The graph needs the input as it was.
    """
    return _C.copy_(input, out) if inplace and not out.requires_grad else out


def relu(input: _C.Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0).

    Parameters
    ----------
    input : Tensor
        Any shape.
    inplace : bool
        Write into `input` where no gradient is recorded.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    return placed(input, _C.relu(input), inplace)


def gelu(input: _C.Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit; `approximate` is ``"none"`` or ``"tanh"``.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    approximate : {"none", "tanh"}
        The exact function, with erf, or the approximation that GPT-2 uses.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.

    Raises
    ------
    RuntimeError
        If `approximate` is neither.
    """
    if approximate == "none":
        return _C.gelu(input)
    if approximate == "tanh":
        return _C.gelu_tanh(input)
    raise RuntimeError(f"[gelu] approximate: got {approximate!r}, expected 'none' or 'tanh'")


def silu(input: _C.Tensor, inplace: bool = False) -> Tensor:
    """input * sigmoid(input).

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    inplace : bool
        Write into `input` where no gradient is recorded.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    return placed(input, _C.silu(input), inplace)


def tanh(input: _C.Tensor) -> Tensor:
    """Hyperbolic tangent.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    return _C.tanh(input)


def sigmoid(input: _C.Tensor) -> Tensor:
    """1 / (1 + exp(-input)).

    Parameters
    ----------
    input : Tensor
        Floating, any shape.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    return _C.sigmoid(input)


def leaky_relu(input: _C.Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """`input` where positive, else ``negative_slope * input``.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    negative_slope : float
        The slope left of 0.
    inplace : bool
        Write into `input` where no gradient is recorded.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    out = _C.where(_C.gt(input, 0), input, _C.mul(input, negative_slope))
    return placed(input, out, inplace)


def softplus(input: _C.Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * input)) / beta, the line itself above `threshold`.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    beta : float
        How sharp the bend is.
    threshold : float
        Where ``beta * input`` exceeds it, the result is `input`.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    scaled = _C.mul(input, beta)
    # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which never overflows.
    tail = _C.log(_C.add(_C.exp(_C.neg(_C.abs(scaled))), 1.0))
    curve = _C.div(_C.add(_C.relu(scaled), tail), beta)
    return _C.where(_C.gt(scaled, threshold), input, curve)


def logsigmoid(input: _C.Tensor) -> Tensor:
    """log(sigmoid(input)).

    Parameters
    ----------
    input : Tensor
        Floating, any shape.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    return _C.neg(softplus(_C.neg(input), threshold=math.inf))


def softmax(input: _C.Tensor, dim: int | None = None, dtype: dtype | None = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    dim : int, optional
        The dimension; without it 0 for tensors of 0, 1 and 3 dimensions, else 1, as in PyTorch.
    dtype : dtype, optional
        The input is cast to it first.

    Returns
    -------
    Tensor
        Shape of `input`; the sums along `dim` are 1.
    """
    return _C.softmax(*_along(input, dim, dtype))


def log_softmax(input: _C.Tensor, dim: int | None = None, dtype: dtype | None = None) -> Tensor:
    """log(softmax(input)) along `dim`, without overflow.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    dim : int, optional
        The dimension; without it 0 for tensors of 0, 1 and 3 dimensions, else 1, as in PyTorch.
    dtype : dtype, optional
        The input is cast to it first.

    Returns
    -------
    Tensor
        Shape of `input`.
    """
    return _C.log_softmax(*_along(input, dim, dtype))


def _along(input: _C.Tensor, dim: int | None, dtype: dtype | None) -> tuple[_C.Tensor, int]:
    # The input as asked for, and the dimension: PyTorch's choice where none is given.
    if dtype is not None:
        input = _C.to_dtype(input, to_code(dtype))
    if dim is None:
        dim = 0 if input.ndim in (0, 1, 3) else 1
    return input, dim
