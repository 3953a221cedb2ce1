# SPDX-License-Identifier: Apache-2.0
"""The base of all learning-rate schedules.

`get_lr` goes from the present rate to the next, so that schedules can be chained and a rate can be
changed by hand; ``step(epoch)`` uses the closed form where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.optim.optimizer import Optimizer

__all__ = ["LRScheduler", "per_group", "require_optimizer"]


def require_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer, before anything of it is read."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")


class LRScheduler:
    """Base of all schedules.

    Parameters
    ----------
    optimizer : Optimizer
        Whose groups' ``"lr"`` is set.
    last_epoch : int
        How many steps were taken before, -1 for a new start.

    Attributes
    ----------
    base_lrs : list of float
        The rates that the schedule starts from.
    last_epoch : int
        Number of steps taken.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        require_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    "param 'initial_lr' is not specified in param_groups"
                    f"[{i}] when resuming an optimizer"
                )
        self.base_lrs: list[float] = [g["initial_lr"] for g in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._step_count = 0
        self._last_lr: list[float] = []
        self._start()

    def _start(self) -> None:
        self.step()

    def get_lr(self) -> list[float]:
        """Rates of the groups at `last_epoch`, from those before; every subclass defines it."""
        raise NotImplementedError

    def _closed_form(self) -> list[float]:
        # Rates from base_lrs and last_epoch alone, where a subclass knows them.
        return self.get_lr()

    def get_last_lr(self) -> list[float]:
        """The rates that the last step set."""
        return self._last_lr

    def step(self, epoch: int | None = None) -> None:
        """Go one step on, or to `epoch`."""
        self._step_count += 1
        if epoch is None:
            self.last_epoch += 1
            rates = self.get_lr()
        else:
            self.last_epoch = epoch
            rates = self._closed_form()
        self._set(rates)

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _present(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.__dict__.update(state_dict)


def per_group(
    optimizer: Optimizer, value: float | Sequence[float], op: str, name: str
) -> list[float]:
    """One number per group, from one for all or a sequence."""
    count = len(optimizer.param_groups)
    if isinstance(value, (int, float)):
        return [float(value)] * count
    numbers = [float(v) for v in value]
    if len(numbers) != count:
        raise ValueError(f"[{op}] {name}: got {len(numbers)} values, expected {count}, one a group")
    return numbers
