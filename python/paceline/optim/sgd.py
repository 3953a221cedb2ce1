# SPDX-License-Identifier: Apache-2.0
"""SGD, with PyTorch's arguments, defaults and arithmetic."""

from __future__ import annotations

from typing import Any

from paceline import _C
from paceline.optim.optimizer import (
    Optimizer,
    Params,
    Seen,
    follow,
    in_memory_order,
    refuse,
    zeros_beside,
)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for.

    Parameters
    ----------
    params : iterable
        See `Optimizer`.
    lr : float
        Learning rate.
    momentum : float
        Decay of the running sum of gradients.
    dampening : float
        What is taken off the new gradient's share of that sum.
    weight_decay : float
        L2 penalty.
    nesterov : bool
        Look ahead along the momentum.
    maximize : bool
        Go up instead of down.
    foreach, fused : bool, optional
        Accepted: every update is one call for all parameters.
    differentiable : bool
        Not built.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        refuse("SGD", differentiable=group["differentiable"])
        if not group["lr"] >= 0.0:
            raise ValueError(f"Invalid learning rate: {group['lr']}")
        if not group["momentum"] >= 0.0:
            raise ValueError(f"Invalid momentum value: {group['momentum']}")
        if not group["weight_decay"] >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def _update(self, group: dict[str, Any], params: list[Any], scale: float) -> list[Seen]:
        params = in_memory_order(params)
        if not group["momentum"]:
            return [(params, self._call(group, params, None, False, scale))]
        state = self.state
        fresh = [p for p in params if state.get(p, {}).get("momentum_buffer") is None]
        if fresh:
            for p, (buffer,) in zip(fresh, zeros_beside(fresh, 1), strict=True):
                state.setdefault(p, {})["momentum_buffer"] = buffer
        elif state[params[0]]["momentum_buffer"]._device_index != params[0]._device_index:
            follow(params, state)
        is_fresh = {id(p) for p in fresh}
        finite = []
        for first in (True, False):
            members = [p for p in params if (id(p) in is_fresh) == first]
            if members:
                held = [state[p]["momentum_buffer"] for p in members]
                finite.append((members, self._call(group, members, held, first, scale)))
        return finite

    @staticmethod
    def _call(
        group: dict[str, Any], params: list[Any], momenta: Any, first: bool, scale: float
    ) -> Any:
        return _C.sgd_step(
            params,
            None,  # their own gradients
            momenta,
            first,
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            bool(group["nesterov"]),
            bool(group["maximize"]),
            scale,
        )
