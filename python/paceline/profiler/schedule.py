# SPDX-License-Identifier: Apache-2.0
"""Which steps of a run are recorded."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Schedule", "schedule"]


@dataclass(frozen=True)
class Schedule:
    """Steps of each phase, as ``torch.profiler.schedule`` has them.

    After ``skip_first`` steps, cycles of ``wait`` steps that are not recorded, ``warmup`` steps
    that are recorded and thrown away, and ``active`` steps that are kept; ``repeat`` cycles, or
    without end where it is 0.
    """

    wait: int
    warmup: int
    active: int
    repeat: int = 0
    skip_first: int = 0

    def __post_init__(self) -> None:
        for name in ("wait", "warmup", "repeat", "skip_first"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"[schedule] {name} must be an integer of at least 0: got {value}")
        if type(self.active) is not int or self.active < 1:
            raise ValueError(
                f"[schedule] active must be an integer of at least 1: got {self.active}"
            )

    def phase(self, step: int) -> tuple[bool, bool]:
        """Tell of a step (from 0) whether it is kept, and whether it is the last of its cycle."""
        length = self.wait + self.warmup + self.active
        cycle, at = divmod(step - self.skip_first, length)
        if step < self.skip_first or (self.repeat and cycle >= self.repeat):
            return False, False
        return at >= self.wait + self.warmup, at == length - 1


def schedule(
    *, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0
) -> Schedule:
    """Make a schedule; see `Schedule` for the arguments."""
    return Schedule(wait, warmup, active, repeat, skip_first)
