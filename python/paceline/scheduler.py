# SPDX-License-Identifier: Apache-2.0
"""The learning-rate scheduler that ``prepare`` gives back. Knows schedulers by their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimizer import AcceleratedOptimizer
    from .state import GradientState
    from .training.schedule_length import ScheduleLength

__all__ = ["AcceleratedScheduler"]


class AcceleratedScheduler:
    """A scheduler that advances with the optimizer it belongs to.

    Accelerate's documented rule is the default: one call of ``step`` advances the schedule
    **once per process**, so that a schedule written for one process (its length counted in
    batches of one process) ends where the sharded run ends; with ``split_batches`` it advances
    once. A schedule whose length was computed from ``len()`` of the *prepared* loader must advance
    once per optimizer step: ask for that with ``SchedulerKwargs(step_per_process=False)``. With
    ``Accelerator(step_scheduler_with_optimizer=False)`` one call is one step, whatever the
    optimizer does.

    While gradients are accumulated, and where the optimizer's step was left out, ``step`` does
    nothing.

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
        self._length: ScheduleLength | None = None

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

    @property
    def steps_per_call(self) -> int:
        """How far one call of ``step`` advances the schedule."""
        alone = self.split_batches or not self.step_with_optimizer
        return 1 if alone else self.num_processes

    def watch_length(
        self, length: ScheduleLength, loaders: Sequence[Any], *, made_before: bool
    ) -> None:
        """Warn where the schedule's length does not fit the run; see ``ScheduleLength.judge``."""
        self._length = length
        length.judge(self.scheduler, loaders, made_before)

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
        if self._length is not None:
            self._length.about_to_step(self.scheduler)
        total = getattr(self.scheduler, "total_steps", None)
        for _ in range(self.steps_per_call):
            # A schedule of a fixed length (OneCycle) must not be driven past its end.
            if total is None or self.scheduler._step_count <= total:
                self.scheduler.step(*args, **kwargs)

    def get_last_lr(self) -> Any:
        """Give the rates that the last step set."""
        return self.scheduler.get_last_lr()

    def get_lr(self) -> Any:
        """Give the rates of the present step."""
        return self.scheduler.get_lr()

    def state_dict(self) -> Any:
        """Give the schedule's state."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a state."""
        self.scheduler.load_state_dict(state_dict)
