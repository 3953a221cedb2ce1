# SPDX-License-Identifier: Apache-2.0
"""What one rank of a run did, written at its end for ``paceline sweep``.

An Accelerator makes a ``RunReport`` where ``PACELINE_REPORT_FILE`` names a file; each rank writes
one of its own, ``FILE.RANK``. Costs a counter per backward pass; knows no tensor library.
"""

from __future__ import annotations

import atexit
import json
import time
from typing import Any, Protocol

from ._replacing import replacing
from .profiler import Profiler, schedule

__all__ = ["Reported", "RunReport"]

_FIRST_STEPS = 2  # not timed: memory is allocated and code is loaded there
_PROFILED_STEPS = 10  # enough for a share; recording all would cost memory


class Reported(Protocol):
    """What is asked of an Accelerator, once, at the end."""

    @property
    def num_processes(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def mixed_precision(self) -> str: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...


class RunReport:
    """Counts backward passes and samples, and times them.

    Parameters
    ----------
    accelerator : Reported
        Whose run it is.
    path : str
        The file, without the rank.
    """

    def __init__(self, accelerator: Reported, path: str) -> None:
        self._accelerator = accelerator
        self._path = path
        self._passes = 0
        self._samples = 0  # of all processes together, in the timed passes
        self._unknown = False  # a batch whose size nobody knows
        self._begin = 0.0
        self._end = 0.0
        self._loss: Any = None
        self._profiler = Profiler(
            schedule=schedule(
                wait=0, warmup=0, active=_PROFILED_STEPS, repeat=1, skip_first=_FIRST_STEPS
            ),
            rank=accelerator.process_index,
        )
        self._profiler.start()
        self._profiling = True
        atexit.register(self.write)

    def count(self, loss: Any, global_batch: int | None) -> None:
        """Note one backward pass, after it.

        Parameters
        ----------
        loss : tensor
            Its loss.
        global_batch : int or None
            Samples that all processes together worked on; None where unknown.
        """
        self._passes += 1
        if self._profiling:
            self._profiler.step()
            if self._passes >= _FIRST_STEPS + _PROFILED_STEPS:
                self.end_profile()
        self._loss = loss.detach()
        if self._passes > _FIRST_STEPS:
            self._end = time.perf_counter()
            self._samples += global_batch or 0
            self._unknown |= global_batch is None
        elif self._passes == _FIRST_STEPS:
            self._begin = time.perf_counter()

    def end_profile(self) -> None:
        """Stop recording: the steps are there, or the script wants a profile of its own."""
        if self._profiling:
            self._profiling = False
            self._profiler.stop()

    def _exposed(self) -> float | None:
        """Give the share of the time in which this rank waited for communication, 0 to 1."""
        parts = self._profiler.ranks.get(self._accelerator.process_index)
        return None if parts is None or parts.wall <= 0 else parts.exposed / parts.wall

    def result(self) -> dict[str, Any]:
        """Give what is known now.

        Returns
        -------
        dict
            ``seconds`` and ``samples`` of the timed passes, ``loss`` of the last one (None where
            there was none), ``peak_bytes`` of memory, and the settings that were in force.
        """
        import resource

        self.end_profile()
        accelerator = self._accelerator
        timed = self._end > self._begin > 0
        return {
            "rank": accelerator.process_index,
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
            "backward_passes": self._passes,
            "seconds": self._end - self._begin if timed else None,
            "samples": self._samples if timed and not self._unknown else None,
            "loss": None if self._loss is None else float(self._loss.item()),
            "exposed": self._exposed(),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def write(self) -> None:
        """Write the file of this rank, whole or not at all."""
        with replacing(f"{self._path}.{self._accelerator.process_index}") as file:
            json.dump(self.result(), file)
