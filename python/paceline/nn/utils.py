# SPDX-License-Identifier: Apache-2.0
"""Clipping of gradients, and parameters as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from paceline import _C
from paceline.dtypes import float32, float64

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "parameters_to_vector",
    "vector_to_parameters",
]

Parameters = _C.Tensor | Iterable[_C.Tensor]


def _gradients(parameters: Parameters) -> list[_C.Tensor]:
    several = (parameters,) if isinstance(parameters, _C.Tensor) else parameters
    return [p.grad for p in several if p.grad is not None]


def get_total_norm(
    tensors: Parameters,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Norm of all tensors taken as one vector.

    Parameters
    ----------
    tensors : Tensor or iterable of Tensor
        Floating.
    norm_type : float
        2, 1, ``math.inf``, ...
    error_if_nonfinite : bool
        Whether an infinite or undefined norm is an error; of tensors on a GPU that waits for it.
    foreach : None
        Accepted; all tensors go through one call in any case.

    Returns
    -------
    Tensor
        One float32 number, where the first tensor lies; of a GPU it is not waited for.

    Raises
    ------
    RuntimeError
        See `error_if_nonfinite`.
    """
    several = [tensors] if isinstance(tensors, _C.Tensor) else list(tensors)
    norm = _norm(several, float(norm_type), error_if_nonfinite)
    return _as_tensor(norm, several)


def _as_tensor(norm: float | Tensor, beside: Sequence[_C.Tensor]) -> Tensor:
    # As PyTorch: on the device of the first.
    if isinstance(norm, _C.Tensor):
        return _C.to_dtype(norm, float32.code)
    return _C.full((), norm, float32.code, beside[0]._device_index if beside else -1)


def _norm(
    several: Sequence[_C.Tensor], kind: float, error_if_nonfinite: bool = False
) -> float | Tensor:
    """Give a number, or where all tensors lie on a GPU one that is there."""
    norm: float | Tensor | None
    if kind in (2.0, math.inf):
        norm = _C.norm_there(several, kind == math.inf)
        if norm is None:
            norm = _C.grad_norm(several, kind)
    else:
        norm = _p_norm(several, kind)
    if error_if_nonfinite:
        _check(float(norm), kind)
    return norm


def _p_norm(several: Sequence[_C.Tensor], kind: float) -> float | Tensor:
    before = _C.set_grad_enabled(False)
    try:
        powers = [_C.sum(_C.pow(_C.abs(t), kind), None, False) for t in several]
        if not all(t._device_index >= 0 for t in several) or not several:
            return float(math.fsum(float(p.item()) for p in powers) ** (1.0 / kind))
        each = [_C.reshape(_C.to_dtype(p, float64.code), (1,)) for p in powers]
        return _C.pow(_C.sum(_C.cat(each, 0), None, False), 1.0 / kind)
    finally:
        _C.set_grad_enabled(before)


def _check(norm: float, kind: float) -> None:
    if not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {kind} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )


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
    multiplies by it on its way, and so does whoever reads ``.grad`` before. On a GPU norm and
    factor stay there, and nobody waits for them.

    Parameters
    ----------
    parameters : iterable of Tensor
        Those whose ``.grad`` is meant.
    max_norm : float
        The largest norm.
    norm_type : float
        2, 1, ``math.inf``, ...
    error_if_nonfinite : bool
        Whether an infinite or undefined norm is an error; on a GPU that waits for it.
    foreach : None
        Accepted; all gradients go through one call in any case.
    scale_nonfinite : bool
        False leaves the gradients alone where the norm is infinite or undefined: PyTorch spreads
        the NaN over all of them.

    Returns
    -------
    Tensor
        The norm before, where the first gradient lies.
    """
    leaves = [parameters] if isinstance(parameters, _C.Tensor) else list(parameters)
    kind, limit = float(norm_type), float(max_norm)
    if kind == 2.0:
        if error_if_nonfinite and (norm := _C.leaf_clip_(leaves, math.inf, True)) is not None:
            _check(float(norm), kind)
        if (norm := _C.leaf_clip_(leaves, limit, not scale_nonfinite)) is not None:
            return norm
        number = _C.leaf_norm(leaves)
        if error_if_nonfinite:
            _check(number, kind)
        _clip(leaves, limit, number, scale_nonfinite)
        return _as_tensor(number, _first_gradient(leaves))
    grads = _gradients(leaves)
    total = _norm(grads, kind, error_if_nonfinite)
    _clip(leaves, limit, total, scale_nonfinite)
    return _as_tensor(total, grads)


def _first_gradient(leaves: Sequence[_C.Tensor]) -> Sequence[_C.Tensor]:
    """Give the first leaf that has one: to look at the gradient would apply what is due to it."""
    return _C.with_grad(leaves)[:1]


def _clip(
    leaves: Sequence[_C.Tensor], max_norm: float, norm: float | Tensor, scale_nonfinite: bool
) -> None:
    """Multiply by what brings a norm down to `max_norm`; 1e-6 keeps the quotient finite."""
    if not isinstance(norm, _C.Tensor):
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1.0 and (scale_nonfinite or math.isfinite(norm)):
            _C.leaf_scale_(leaves, factor, False)
        return
    wide = _C.to_dtype(_C.detach(norm), float64.code)
    there = _C.div(max_norm, _C.add(wide, 1e-6))
    there = _C.where(_C.ge(there, 1.0), 1.0, there)
    if not scale_nonfinite:
        there = _C.where(_C.isfinite(wide), there, 1.0)
    _C.leaf_scale_by_(leaves, there)


def clip_grads_with_norm_(
    parameters: Parameters, max_norm: float, total_norm: _C.Tensor, foreach: bool | None = None
) -> None:
    """Scale the gradients as `clip_grad_norm_` does, by a norm that is known already.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose ``.grad`` is meant; ones without are passed over.
    max_norm : float
        The largest norm.
    total_norm : Tensor
        One number, such as `get_total_norm` gives. Where it lies on the gradients' GPU nobody
        waits for it.
    foreach : None
        Accepted; all gradients go through one call in any case.
    """
    leaves = [parameters] if isinstance(parameters, _C.Tensor) else list(parameters)
    with_grad = _C.with_grad(leaves)
    at = total_norm._device_index
    together = at >= 0 and all(p._device_index == at for p in with_grad)
    norm = _C.reshape(total_norm, ()) if together else float(total_norm.item())
    _clip(with_grad, float(max_norm), norm, True)


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
