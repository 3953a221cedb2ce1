# SPDX-License-Identifier: Apache-2.0
"""Clipping of gradients, and parameters as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from paceline import _C
from paceline.dtypes import float32

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "parameters_to_vector",
    "vector_to_parameters",
]

Parameters = _C.Tensor | Iterable[_C.Tensor]


def _gradients(parameters: Parameters) -> list[Tensor]:
    several = (parameters,) if isinstance(parameters, _C.Tensor) else parameters
    return [p.grad for p in several if p.grad is not None]


def get_total_norm(
    tensors: Parameters, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Norm of all tensors taken as one vector.

    Parameters
    ----------
    tensors : Tensor or iterable of Tensor
        Floating.
    norm_type : float
        2, 1, ``math.inf``, ...
    error_if_nonfinite : bool
        Whether an infinite or undefined norm is an error.

    Returns
    -------
    Tensor
        One float32 number.

    Raises
    ------
    RuntimeError
        See `error_if_nonfinite`.
    """
    several = (tensors,) if isinstance(tensors, _C.Tensor) else tuple(tensors)
    norm = _norm(several, float(norm_type), error_if_nonfinite)
    return _C.full((), norm, float32.code)


def _norm(tensors: Iterable[_C.Tensor], kind: float, error_if_nonfinite: bool) -> float:
    several = list(tensors)
    if kind in (2.0, math.inf):
        norm = _C.grad_norm(several, kind) if several else 0.0
    else:
        powers = [float(_C.sum(_C.pow(_C.abs(t), kind), None, False).item()) for t in several]
        norm = math.fsum(powers) ** (1.0 / kind)
    return _checked(norm, kind, error_if_nonfinite)


def _checked(norm: float, kind: float, error_if_nonfinite: bool) -> float:
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {kind} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )
    return norm


def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    scale_nonfinite: bool = True,
) -> Tensor:
    """Scale the gradients so that their norm, taken as one vector, is `max_norm` at most.

    Where nothing else refers to them, the factor is left with the gradients: the optimizer's step
    multiplies by it on its way, and so does whoever reads ``.grad`` before.

    Parameters
    ----------
    parameters : iterable of Tensor
        Those whose ``.grad`` is meant.
    max_norm : float
        The largest norm.
    norm_type : float
        2, 1, ``math.inf``, ...
    error_if_nonfinite : bool
        Whether an infinite or undefined norm is an error.
    foreach : None
        Accepted; all gradients go through one call in any case.
    scale_nonfinite : bool
        False leaves the gradients alone where the norm is infinite or undefined: PyTorch spreads
        the NaN over all of them.

    Returns
    -------
    Tensor
        The norm before.
    """
    several = (parameters,) if isinstance(parameters, _C.Tensor) else parameters
    leaves = list(several)
    kind = float(norm_type)
    if kind == 2.0:
        norm = _checked(_C.leaf_norm(leaves), kind, error_if_nonfinite)
    else:
        norm = _norm(_gradients(leaves), kind, error_if_nonfinite)
    if scale_nonfinite or math.isfinite(norm):
        # As PyTorch: the norm is a float32 number, and 1e-6 keeps the quotient finite.
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1.0:
            _C.leaf_scale_(leaves, factor, False)
    return _C.full((), norm, float32.code)


def clip_grad_value_(
    parameters: Parameters, clip_value: float, foreach: bool | None = None
) -> None:
    """Clamp every element of the gradients to [-clip_value, clip_value].

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose ``.grad`` is meant; ones without are passed over.
    clip_value : float
        The bound, 0 or more.
    foreach : None
        Accepted and not needed.
    """
    limit = float(clip_value)
    before = _C.set_grad_enabled(False)
    try:
        for grad in _gradients(parameters):
            _C.copy_(grad, _C.clamp(grad, -limit, limit))
    finally:
        _C.set_grad_enabled(before)


def parameters_to_vector(parameters: Iterable[_C.Tensor]) -> Tensor:
    """All parameters, one after the other, in one vector.

    Parameters
    ----------
    parameters : iterable of Tensor
        Of one dtype.

    Returns
    -------
    Tensor
        (total number of elements).
    """
    return _C.cat([_C.reshape(p, (-1,)) for p in parameters], 0)


def vector_to_parameters(vec: _C.Tensor, parameters: Iterable[_C.Tensor]) -> None:
    """Copy the parts of a vector into the parameters.

    Parameters
    ----------
    vec : Tensor
        (total number of elements).
    parameters : iterable of Tensor
        What is written, in this order.
    """
    at = 0
    before = _C.set_grad_enabled(False)
    try:
        for p in parameters:
            count = p._numel()
            _C.copy_(p, _C.reshape(_C.slice(vec, 0, at, at + count, 1), p.shape))
            at += count
    finally:
        _C.set_grad_enabled(before)
