# SPDX-License-Identifier: Apache-2.0
"""The profiler of one rank: switches the trace on and off and keeps what it gave.

Knows no Accelerator; ``ranks.py`` puts the ranks' records together. One profiler runs at a time in
a process, since there is one trace.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paceline import _C

from .._trace import Kind
from .chrome import Process, events_text, write_trace
from .record import Breakdown, Event, Record, Thread, divide, merge
from .schedule import Schedule
from .table import Averages, averages, breakdown_table

if TYPE_CHECKING:
    from ..engines import OperatorLog

__all__ = ["Profiler"]

#: Events kept of each thread: at 144 bytes each, 36 MB when full.
EVENTS_PER_THREAD = 1 << 18

_running: Profiler | None = None


class Profiler:
    """Records what this process does, from ``start`` to ``stop`` or as a schedule says.

    Parameters
    ----------
    schedule : Schedule, optional
        Which steps are kept; None keeps all from ``start`` to ``stop``.
    on_trace_ready : callable, optional
        Called with the profiler whenever a cycle of the schedule, or all, is recorded.
    record_shapes : bool
        Keep the shapes of operators' inputs.
    rank : int
        Number of this process in pictures and tables.
    libraries : bool
        Also record the operators of other tensor libraries that the program has loaded.

    Examples
    --------
    >>> from paceline.profiler import Profiler
    >>> with Profiler() as prof:
    ...     pass
    >>> prof.record.lost
    0
    """

    def __init__(
        self,
        *,
        schedule: Schedule | None = None,
        on_trace_ready: Callable[[Profiler], Any] | None = None,
        record_shapes: bool = False,
        rank: int = 0,
        libraries: bool = False,
    ) -> None:
        self._schedule = schedule
        self._on_trace_ready = on_trace_ready
        self._record_shapes = record_shapes
        self._libraries = libraries
        self._logs: list[OperatorLog] = []
        self._main = 0
        self._step = 0
        self._kept_steps = 0
        self._recording = False
        self._started = self._step_started = 0
        self._record: Record | None = None
        #: The breakdown of each rank, once the ranks' records were put together.
        self.ranks: dict[int, Breakdown] = {}
        self.process = Process(rank, socket.gethostname(), os.getpid())

    # --- recording ------------------------------------------------------------------------------

    def __enter__(self) -> Profiler:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop(ready=error[0] is None)

    def start(self) -> None:
        """Begin.

        Raises
        ------
        RuntimeError
            When another profiler is running in this process.
        """
        global _running
        if _running is not None:
            raise RuntimeError(
                "[profile] another profile is being taken in this process: end it first"
            )
        _running = self
        self._main = threading.get_native_id()
        self._step = 0
        if self._keeps(0):
            self._begin()

    def step(self) -> None:
        """Tell that a training step has ended; a schedule counts these."""
        if _running is not self:
            raise RuntimeError("[profile] step() outside the profile: call it inside the block")
        if self._recording:
            _C.trace_end(self._step_started, Kind.USER, "step")
            self._kept_steps += 1
        last = self._schedule is not None and self._schedule.phase(self._step)[1]
        self._step += 1
        if self._recording and last:
            self._end(ready=True)
        if not self._recording and self._keeps(self._step):
            self._begin()
        self._step_started = _C.trace_begin()

    def stop(self, ready: bool = True) -> None:
        """End, and keep what was recorded.

        Parameters
        ----------
        ready : bool
            Whether ``on_trace_ready`` is called, if something was being recorded.
        """
        global _running
        if _running is not self:
            return
        try:
            if self._recording:
                self._end(ready)
        finally:
            _C.trace_stop()
            _running = None
            for log in self._logs:  # only after a failure
                log.stop()
            self._logs = []

    def _keeps(self, step: int) -> bool:
        return self._schedule is None or self._schedule.phase(step)[0]

    def _begin(self) -> None:
        self._recording = True
        self._kept_steps = 0
        if self._libraries:
            self._logs = _operator_logs(self._record_shapes)
        _C.trace_start(self._record_shapes, EVENTS_PER_THREAD)
        self._started = time.monotonic_ns()
        self._step_started = _C.trace_begin()

    def _end(self, ready: bool) -> None:
        ended = time.monotonic_ns()
        _C.trace_stop()
        self._recording = False
        threads = [
            Thread(tid, list(map(Event._make, events)), lost)
            for tid, events, lost in _C.trace_read()
        ]
        _C.trace_clear()
        logs, self._logs = self._logs, []
        for log in logs:
            threads = merge(threads, log.stop())
        self._record = Record(self._main, self._started, ended, threads, self._kept_steps)
        self.ranks = {self.process.rank: divide(self._record)}
        if ready and self._on_trace_ready is not None:
            self._on_trace_ready(self)

    # --- what was recorded ----------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """What was recorded last.

        Raises
        ------
        RuntimeError
            When nothing is recorded yet.
        """
        if self._record is None:
            raise RuntimeError(
                "[profile] nothing is recorded yet: it is there after the block, or after the "
                "active steps of its schedule (call prof.step() after each step)"
            )
        return self._record

    def events(self) -> list[Event]:
        """Give the events of all threads of this rank."""
        return list(self.record.events())

    def key_averages(self) -> Averages:
        """Add up this rank's events by name; ``.table()`` lays that out."""
        return averages(self.record)

    def table(self) -> str:
        """Tell where the time went: computing, talking to others, waiting for data, stepping.

        After ``Accelerator.profile`` with an ``output_trace_dir`` the main process has a line for
        each rank, else there is one for this rank.
        """
        return breakdown_table(self.ranks or {self.process.rank: divide(self.record)}, self._lost())

    def _lost(self) -> int:
        return self.record.lost

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write this rank's events for Perfetto (ui.perfetto.dev) or chrome://tracing."""
        write_trace(os.fspath(path), events_text(self.record, self.process))


def _operator_logs(shapes: bool) -> list[OperatorLog]:
    from ..engines import loaded_engines

    logs = [log for engine in loaded_engines() if (log := engine.operator_log(shapes))]
    for log in logs:
        log.start()
    return logs
