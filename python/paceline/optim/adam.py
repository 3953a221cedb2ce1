# SPDX-License-Identifier: Apache-2.0
"""Adam and AdamW, with PyTorch's arguments, defaults and arithmetic."""

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


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); `weight_decay` is added to the gradient.

    Parameters
    ----------
    params : iterable
        See `Optimizer`.
    lr : float
        Learning rate.
    betas : (float, float)
        Decay of the running means of the gradient and of its square.
    eps : float
        Added to the denominator.
    weight_decay : float
        L2 penalty.
    amsgrad : bool
        Not built.
    maximize : bool
        Go up instead of down.
    foreach, fused : bool, optional
        Accepted: every update is one call for all parameters.
    capturable, differentiable : bool
        Not built.
    decoupled_weight_decay : bool
        Shrink the parameters instead of adding to the gradient, as `AdamW`.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        refuse(
            type(self).__name__,
            amsgrad=group["amsgrad"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
        )
        if not group["lr"] >= 0.0:
            raise ValueError(f"Invalid learning rate: {group['lr']}")
        if not group["eps"] >= 0.0:
            raise ValueError(f"Invalid epsilon value: {group['eps']}")
        for i, beta in enumerate(group["betas"]):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not group["weight_decay"] >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")

    def _update(self, group: dict[str, Any], params: list[Any], scale: float) -> list[Seen]:
        params = in_memory_order(params)
        state = self.state
        fresh = [p for p in params if p not in state]
        if fresh:
            for p, (mean, square) in zip(fresh, zeros_beside(fresh, 2), strict=True):
                state[p] = {"step": 0, "exp_avg": mean, "exp_avg_sq": square}
        elif state[params[0]]["exp_avg"]._device_index != params[0]._device_index:
            follow(params, state)
        # Parameters that had no gradient once lag behind in their number of steps.
        by_step: dict[int, list[Any]] = {}
        for p in params:
            step = state[p]["step"] + 1
            by_step.setdefault(step, []).append(p)
        finite = []
        for step, members in by_step.items():
            held = [state[p] for p in members]
            told = _C.adam_step(
                members,
                None,  # their own gradients
                [s["exp_avg"] for s in held],
                [s["exp_avg_sq"] for s in held],
                step,
                float(group["lr"]),
                float(group["betas"][0]),
                float(group["betas"][1]),
                float(group["eps"]),
                float(group["weight_decay"]),
                bool(group.get("decoupled_weight_decay", False)),
                bool(group["maximize"]),
                scale,
            )
            finite.append((members, told))
            for s in held:
                s["step"] = step
        return finite


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); arguments as `Adam`."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Optimizer.load_state_dict`; the decay stays decoupled."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
