# SPDX-License-Identifier: Apache-2.0
"""The learning-rate scheduler that ``prepare`` gives back. Knows schedulers by their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimizer import AcceleratedOptimizer
    from .state import GradientState

__all__ = ["AcceleratedScheduler"]


class AcceleratedScheduler:
    """A scheduler that advances with the optimizer it belongs to.

    Accelerate's documented rule is the default: one call of ``step`` advances the schedule
    **once per process**, so that a schedule written for one process (its length counted in
    batches of one process) ends where the sharded run ends; with ``split_batches`` it advances
    once. A schedule whose length was computed from ``len()`` of the *prepared* loader is already
    right: for that, use ``Accelerator(step_scheduler_with_optimizer=False)``, which makes one call
    one step, or do not pass the scheduler to ``prepare``.

    While gradients are accumulated, ``step`` does nothing.

    Parameters
    ----------
    scheduler : LRScheduler
        The script's scheduler.
    optimizers : sequence of AcceleratedOptimizer
        Those it belongs to.
    gradient_state : GradientState
        Of the Accelerator that prepares it.
    num_processes : int
        How often one call steps.
    step_with_optimizer : bool
        False makes one call one step, whatever the optimizer does.
    split_batches : bool
        Whether a batch is that of all processes together.
    """

    def __init__(
        self,
        scheduler: Any,
        optimizers: Sequence[AcceleratedOptimizer],
        gradient_state: GradientState,
        num_processes: int,
        *,
        step_with_optimizer: bool = True,
        split_batches: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.optimizers = list(optimizers)
        self.gradient_state = gradient_state
        self.num_processes = num_processes
        self.step_with_optimizer = step_with_optimizer
        self.split_batches = split_batches

    @property
    def __class__(self) -> type:
        return type(self.__dict__.get("scheduler", self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("[AcceleratedScheduler] the class cannot be changed")

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __repr__(self) -> str:
        return f"AcceleratedScheduler({self.scheduler!r})"

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advance the schedule; see the class for how far."""
        if not self.step_with_optimizer:
            self.scheduler.step(*args, **kwargs)
            return
        if not self.gradient_state.sync_gradients:
            if self.gradient_state.plugin.adjust_scheduler:
                self.scheduler._step_count += 1
            return
        if any(optimizer.step_was_skipped for optimizer in self.optimizers):
            return
        total = getattr(self.scheduler, "total_steps", None)
        for _ in range(1 if self.split_batches else self.num_processes):
            # A schedule of a fixed length (OneCycle) must not be driven past its end.
            if total is None or self.scheduler._step_count <= total:
                self.scheduler.step(*args, **kwargs)
