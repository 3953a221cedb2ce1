# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: PyTorch's, and DeepSpeed's WarmupLR."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from paceline.optim.one_cycle import OneCycleLR
from paceline.optim.optimizer import Optimizer
from paceline.optim.schedule import LRScheduler, per_group

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "StepLR",
    "WarmupLR",
]


class LambdaLR(LRScheduler):
    """The base rate times a function of the step.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates are set.
    lr_lambda : callable or sequence of callable
        From the number of steps to a factor; one for all groups, or one per group.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        count = len(optimizer.param_groups)
        if callable(lr_lambda):
            self.lr_lambdas = [lr_lambda] * count
        else:
            self.lr_lambdas = list(lr_lambda)
            if len(self.lr_lambdas) != count:
                raise ValueError(f"Expected {count} lr_lambdas, but got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The base rates times the factors."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * factor(self.last_epoch) for base, factor in pairs]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer and the functions."""
        state = super().state_dict()
        state.pop("lr_lambdas")
        return state


class StepLR(LRScheduler):
    """Times `gamma` every `step_size` steps."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        if self.last_epoch == 0 or self.last_epoch % self.step_size != 0:
            return self._present()
        return [lr * self.gamma for lr in self._present()]

    def _closed_form(self) -> list[float]:
        return [b * self.gamma ** (self.last_epoch // self.step_size) for b in self.base_lrs]


class MultiStepLR(LRScheduler):
    """Times `gamma` at each of the steps in `milestones`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        times = self.milestones[self.last_epoch]
        return [lr * self.gamma**times for lr in self._present()]

    def _closed_form(self) -> list[float]:
        passed = bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return [b * self.gamma**passed for b in self.base_lrs]


class ExponentialLR(LRScheduler):
    """Times `gamma` at every step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        if self.last_epoch == 0:
            return self._present()
        return [lr * self.gamma for lr in self._present()]

    def _closed_form(self) -> list[float]:
        return [b * self.gamma**self.last_epoch for b in self.base_lrs]


class ConstantLR(LRScheduler):
    """Times `factor` for the first `total_iters` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= factor <= 1.0:
            raise ValueError("Constant multiplicative factor expected to be between 0 and 1.")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self._present()]
        if self.last_epoch != self.total_iters:
            return self._present()
        return [lr * (1.0 / self.factor) for lr in self._present()]

    def _closed_form(self) -> list[float]:
        factor = 1.0 if self.last_epoch >= self.total_iters else self.factor
        return [b * factor for b in self.base_lrs]


class LinearLR(LRScheduler):
    """Times a factor that goes from `start_factor` to `end_factor` in `total_iters` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1.0:
            raise ValueError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal "
                "to 1."
            )
        if not 0 <= end_factor <= 1.0:
            raise ValueError("Ending multiplicative factor expected to be between 0 and 1.")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in self._present()]
        if self.last_epoch > self.total_iters:
            return self._present()
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * rise
        return [lr * (1.0 + rise / before) for lr in self._present()]

    def _closed_form(self) -> list[float]:
        rise = self.end_factor - self.start_factor
        share = min(self.total_iters, self.last_epoch) / self.total_iters
        return [b * (self.start_factor + rise * share) for b in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the base rate to `eta_min` in `T_max` steps, and back.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates are set.
    T_max : int
        Steps from the top to the bottom.
    eta_min : float
        The rate at the bottom.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates."""
        at, span, low = self.last_epoch, self.T_max, self.eta_min
        if at == 0:
            return self._present()
        if self._step_count == 1:  # resumed: there is no rate before
            return self._closed_form()
        if (at - 1 - span) % (2 * span) == 0:  # at the bottom the quotient below is 0 / 0
            climb = (1 - math.cos(math.pi / span)) / 2
            pairs = zip(self.base_lrs, self._present(), strict=True)
            return [lr + (base - low) * climb for base, lr in pairs]
        now = 1 + math.cos(math.pi * at / span)
        before = 1 + math.cos(math.pi * (at - 1) / span)
        return [now / before * (lr - low) + low for lr in self._present()]

    def _closed_form(self) -> list[float]:
        height = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (b - self.eta_min) * height for b in self.base_lrs]


class WarmupLR(LRScheduler):
    """DeepSpeed's warm-up: from `warmup_min_lr` to `warmup_max_lr`, and then constant.

    As there, the first `step` sets the rate of step 0, so that two updates see the lowest rate.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates are set.
    warmup_min_lr, warmup_max_lr : float or sequence of float
        Rates at both ends, for all groups or per group.
    warmup_num_steps : int
        Steps from one to the other, 2 at least.
    warmup_type : {"log", "linear"}
        How the rate grows.
    last_batch_iteration : int
        Steps taken before, -1 for a new start.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_min_lr: float | Sequence[float] = 0.0,
        warmup_max_lr: float | Sequence[float] = 0.001,
        warmup_num_steps: int = 1000,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ) -> None:
        if warmup_type not in ("log", "linear"):
            raise ValueError(
                f"[WarmupLR] warmup_type: got {warmup_type!r}, expected 'log' or 'linear'"
            )
        self.min_lrs = per_group(optimizer, warmup_min_lr, "WarmupLR", "warmup_min_lr")
        self.max_lrs = per_group(optimizer, warmup_max_lr, "WarmupLR", "warmup_max_lr")
        self.warmup_num_steps = max(2, warmup_num_steps)
        self.warmup_type = warmup_type
        super().__init__(optimizer, -1)
        self.last_epoch = last_batch_iteration

    def _start(self) -> None:
        self._set(self.min_lrs)

    def _share(self) -> float:
        if self.last_epoch >= self.warmup_num_steps:
            return 1.0
        if self.warmup_type == "log":
            return math.log(self.last_epoch + 1) / math.log(self.warmup_num_steps)
        return self.last_epoch / self.warmup_num_steps

    def get_lr(self) -> list[float]:
        """Rates at the present step."""
        share = self._share() if self.last_epoch >= 0 else 0.0
        pairs = zip(self.min_lrs, self.max_lrs, strict=True)
        return [low + (high - low) * share for low, high in pairs]
