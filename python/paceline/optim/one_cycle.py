# SPDX-License-Identifier: Apache-2.0
"""OneCycleLR: the rate climbs to its top and falls far below its start, within one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paceline.optim.optimizer import Optimizer
from paceline.optim.schedule import LRScheduler, per_group, require_optimizer

__all__ = ["OneCycleLR"]


def _cos(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _linear(start: float, end: float, share: float) -> float:
    return (end - start) * share + start


_ANNEAL = {"cos": _cos, "linear": _linear}


class OneCycleLR(LRScheduler):
    """The 1cycle policy: up to `max_lr`, then down to a fraction of the rate it began with.

    The momentum, or Adam's first beta, moves the other way. Call `step` after every batch.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates are set; what they were before does not count.
    max_lr : float or sequence of float
        The highest rate, for all groups or per group.
    total_steps : int, optional
        Length of the cycle; else `epochs` times `steps_per_epoch`.
    epochs, steps_per_epoch : int, optional
        See `total_steps`.
    pct_start : float
        Share of the cycle in which the rate climbs, 0 to 1.
    anneal_strategy : {"cos", "linear"}
        The shape of climb and fall.
    cycle_momentum : bool
        Whether the momentum moves too.
    base_momentum, max_momentum : float or sequence of float
        The momentum at the highest rate, and at both ends.
    div_factor : float
        The cycle begins at ``max_lr / div_factor``,
    final_div_factor : float
        and ends at that rate divided by this.
    three_phase : bool
        Fall back to the first rate as long as the climb took, and only then below it.
    last_epoch : int
        See `LRScheduler`.

    Raises
    ------
    ValueError
        If the length is missing or not positive, a number is out of its range, the optimizer has no
        momentum to move, or `step` goes past the end.

    References
    ----------
    Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates, 2017, https://arxiv.org/abs/1708.07120; numbers as in PyTorch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        require_optimizer(optimizer)
        self.total_steps = _length(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"[OneCycleLR] pct_start: got {pct_start}, expected 0 to 1")
        if anneal_strategy not in _ANNEAL:
            raise ValueError(
                f"[OneCycleLR] anneal_strategy: got {anneal_strategy!r}, expected 'cos' or 'linear'"
            )
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        top = per_group(optimizer, max_lr, "OneCycleLR", "max_lr")
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, top, strict=True):
                group["initial_lr"] = rate / div_factor
                group["max_lr"] = rate
                group["min_lr"] = group["initial_lr"] / final_div_factor
        if cycle_momentum:
            low = per_group(optimizer, base_momentum, "OneCycleLR", "base_momentum")
            high = per_group(optimizer, max_momentum, "OneCycleLR", "max_momentum")
            self._start_momentum(optimizer, low, high, fresh=last_epoch == -1)
        # Where each phase ends; its rates and momenta at both ends, by their names in a group.
        climb = pct_start * self.total_steps
        up = ("initial_lr", "max_lr", "max_momentum", "base_momentum")
        self.phases: list[tuple[float, tuple[str, str, str, str]]] = [(climb - 1, up)]
        if three_phase:
            down = ("max_lr", "initial_lr", "base_momentum", "max_momentum")
            self.phases.append((2 * climb - 2, down))
            last = ("initial_lr", "min_lr", "max_momentum", "max_momentum")
        else:
            last = ("max_lr", "min_lr", "base_momentum", "max_momentum")
        self.phases.append((self.total_steps - 1, last))
        super().__init__(optimizer, last_epoch)

    def _start_momentum(
        self, optimizer: Optimizer, low: list[float], high: list[float], fresh: bool
    ) -> None:
        if not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ValueError(
                "[OneCycleLR] cycle_momentum: the optimizer has neither momentum nor betas; "
                "give cycle_momentum=False"
            )
        if not fresh:
            return
        for group, base, top in zip(optimizer.param_groups, low, high, strict=True):
            group["max_momentum"], group["base_momentum"] = top, base
            _set_momentum(group, top)

    def get_lr(self) -> list[float]:
        """Rates at the present step; the momenta are set on the way."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"[OneCycleLR] step {self.last_epoch}: the cycle has total_steps={self.total_steps}"
            )
        begin, (end, names) = 0.0, self.phases[0]
        for following in self.phases[1:]:
            if self.last_epoch <= end:
                break
            begin, (end, names) = end, following
        share = (self.last_epoch - begin) / (end - begin) if end != begin else 1.0
        anneal = _ANNEAL[self.anneal_strategy]
        groups = self.optimizer.param_groups
        if self.cycle_momentum:
            for group in groups:
                _set_momentum(group, anneal(group[names[2]], group[names[3]], share))
        return [anneal(group[names[0]], group[names[1]], share) for group in groups]


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group["momentum"] = value


def _length(total: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total is None:
        if epochs is None or steps_per_epoch is None:
            raise ValueError(
                "[OneCycleLR] length: give total_steps, or both epochs and steps_per_epoch"
            )
        given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    else:
        given = {"total_steps": total}
    for name, value in given.items():
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"[OneCycleLR] {name}: got {value!r}, expected a positive integer")
    return math.prod(given.values())
