# SPDX-License-Identifier: Apache-2.0
"""Notices a schedule whose length does not fit the run, and says the right number, once.

A schedule's length is counted in batches of one process or of all, and either can be meant. It is
judged when it is prepared, where its length fits one only, and else when it has come to its end
while training goes on. Knows schedulers by their attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ScheduleLength", "length_of"]

#: Attributes in which schedules keep their length.
_NAMES = ("total_steps", "num_training_steps", "T_max")


def length_of(scheduler: Any) -> int | None:
    """Give the number of steps after which a schedule is over, where it says so."""
    for name in _NAMES:
        value = getattr(scheduler, name, None)
        if isinstance(value, int) and value > 0:
            return value
    for function in getattr(scheduler, "lr_lambdas", ()):  # transformers' schedules
        value = getattr(function, "keywords", {}).get("num_training_steps")
        if isinstance(value, int) and value > 0:
            return value
    return None


@dataclass
class ScheduleLength:
    """Compares a schedule's length with the run.

    Parameters
    ----------
    steps_per_call : int
        How far one call of ``step`` advances the schedule.
    num_processes : int
        Processes of the run.
    accumulation : callable
        Gives the batches per optimizer step.
    say : callable
        Writes one line.
    """

    steps_per_call: int
    num_processes: int
    accumulation: Callable[[], int]
    say: Callable[[str], None]
    said: bool = False

    def judge(self, scheduler: Any, loaders: Sequence[Any], made_before: bool) -> None:
        """Warn where the length fits only what the schedule is not stepped as.

        Parameters
        ----------
        scheduler : LRScheduler
            As the script made it.
        loaders : sequence
            The prepared loaders.
        made_before : bool
            Whether the schedule was prepared together with the first loader, so that its length
            cannot have come from the prepared one.
        """
        total = length_of(scheduler)
        if total is None or self.num_processes == 1:
            return
        sharded, whole = self._steps(loaders)
        if not sharded or total < min(sharded):
            return
        fits_sharded = any(total % n == 0 for n in sharded) and not made_before
        fits_whole = any(total % n == 0 for n in whole)
        if self.steps_per_call > 1 and fits_sharded and not fits_whole:
            self._say(
                f"the schedule's {total} steps look like those of the prepared loader, but each "
                f"call of step() advances it by {self.steps_per_call}, once per process: it will "
                f"be over after {_part(self.steps_per_call)} of the training. Give it "
                f"{total * self.steps_per_call} steps, or "
                "kwargs_handlers=[SchedulerKwargs(step_per_process=False)]"
            )
        if self.steps_per_call == 1 and fits_whole and (made_before or not fits_sharded):
            self._say(
                f"the schedule's {total} steps look like those of the loader before prepare(), but "
                f"{self.num_processes} processes share its batches and each call of step() is one "
                f"step: the training will end at about {_part(self.num_processes)} of the "
                f"schedule. Give it {math.ceil(total / self.num_processes)} steps"
            )

    def about_to_step(self, scheduler: Any) -> None:
        """Warn where the schedule is over and training goes on."""
        total = length_of(scheduler)
        if self.said or total is None or self.steps_per_call == 1:
            return
        if getattr(scheduler, "last_epoch", 0) < total:
            return
        self._say(
            f"the schedule of {total} steps is over after {math.ceil(total / self.steps_per_call)} "
            f"calls of step(), since each advances it by {self.steps_per_call}, once per process, "
            f"and training goes on. Give it {self.steps_per_call} times the number of calls, or "
            "kwargs_handlers=[SchedulerKwargs(step_per_process=False)]"
        )

    def _steps(self, loaders: Sequence[Any]) -> tuple[set[int], set[int]]:
        """Give optimizer steps of an epoch: of the prepared loaders, and of all their batches."""
        sharded: set[int] = set()
        whole: set[int] = set()
        for loader in loaders:
            try:
                n = len(loader)
            except TypeError:
                continue
            if not n:
                continue
            samples = getattr(loader, "total_dataset_length", None)
            size = getattr(loader, "batch_size", None)
            before = math.ceil(samples / size) if samples and size else n * self.num_processes
            every = self.accumulation()
            sharded |= {n, math.ceil(n / every)}
            whole |= {before, math.ceil(before / every)}
        return sharded, whole

    def _say(self, text: str) -> None:
        if not self.said:
            self.said = True
            self.say(text)


def _part(n: int) -> str:
    return {2: "half", 3: "a third", 4: "a quarter"}.get(n, f"1/{n}")
