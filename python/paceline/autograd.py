# SPDX-License-Identifier: Apache-2.0
"""Gradients as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paceline import _C
from paceline._grad_mode import enable_grad, inference_mode, no_grad, set_grad_enabled

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = ["backward", "enable_grad", "grad", "inference_mode", "no_grad", "set_grad_enabled"]

Some = _C.Tensor | Sequence[_C.Tensor]


def _listed(tensors: Some) -> Sequence[_C.Tensor]:
    return (tensors,) if isinstance(tensors, _C.Tensor) else tuple(tensors)


def _starts(
    given: _C.Tensor | Sequence[_C.Tensor | None] | None, count: int
) -> Sequence[_C.Tensor | None]:
    if given is None:
        return (None,) * count
    return (given,) if isinstance(given, _C.Tensor) else tuple(given)


def backward(
    tensors: Some,
    grad_tensors: _C.Tensor | Sequence[_C.Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradients of the sum of `tensors` to ``.grad`` of the leaves.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is differentiated; without grad_tensors, each has one element.
    grad_tensors : Tensor or sequence of Tensor, optional
        The gradient that each begins with, of its shape; None stands for 1.
    retain_graph : bool, optional
        Keep what the graph saved, for another pass.
    create_graph : bool
        Not there: see Raises.

    Raises
    ------
    NotImplementedError
        If `create_graph` is set.
    """
    if create_graph:
        raise NotImplementedError(
            "[backward] gradients of gradients: got create_graph=True, expected False"
        )
    several = _listed(tensors)
    _C.backward(several, _starts(grad_tensors, len(several)), bool(retain_graph))


def grad(
    outputs: Some,
    inputs: Some,
    grad_outputs: _C.Tensor | Sequence[_C.Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of `outputs` with respect to `inputs`; ``.grad`` stays as it is.

    Parameters
    ----------
    outputs : Tensor or sequence of Tensor
        What is differentiated; without grad_outputs, each has one element.
    inputs : Tensor or sequence of Tensor
        By what.
    grad_outputs : Tensor or sequence of Tensor, optional
        The gradient that each begins with, of its shape; None stands for 1.
    retain_graph : bool, optional
        Keep what the graph saved, for another pass.
    create_graph : bool
        Not there: see Raises.
    allow_unused : bool
        Give None for an input that was not used.

    Raises
    ------
    NotImplementedError
        If `create_graph` is set.
    RuntimeError
        If an input was not used and `allow_unused` is False.
    """
    if create_graph:
        raise NotImplementedError(
            "[grad] gradients of gradients: got create_graph=True, expected False"
        )
    several = _listed(outputs)
    starts = _starts(grad_outputs, len(several))
    return tuple(_C.grad(several, _listed(inputs), starts, bool(retain_graph), allow_unused))
