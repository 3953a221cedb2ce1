# SPDX-License-Identifier: Apache-2.0
"""What a session of the trace recorded on this rank, and how its time divides.

Knows events and intervals; nothing of files, ranks or tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

__all__ = ["Breakdown", "Event", "Record", "Thread", "divide", "merge"]

#: Kinds of events that are a rank talking to others, and so cover what lies inside them.
_TALKING = ("communication", "bucket", "wait")


class Event(NamedTuple):
    """A stretch of time; times in nanoseconds on the clock of ``time.monotonic_ns``."""

    kind: str
    name: str
    start: int
    end: int
    nbytes: int
    number: int
    detail: str

    @property
    def label(self) -> str:
        """The name for people: ``matmul backward``, ``bucket 3``."""
        if self.kind == "backward":
            return self.name if self.name == "backward pass" else f"{self.name} backward"
        if self.kind == "bucket" and self.number >= 0:
            return f"bucket {self.number}"
        if self.kind == "wait":
            return f"wait for {self.name}"
        return self.name


@dataclass(frozen=True)
class Thread:
    """The events of one thread, in the order of their ends, properly nested.

    Attributes
    ----------
    tid : int
        The system's number of the thread.
    lost : int
        How many events came after the log was full.
    """

    tid: int
    events: list[Event]
    lost: int = 0


@dataclass
class Breakdown:
    """How the time of one rank divides, in nanoseconds.

    ``forward`` to ``other`` add up to ``wall``: each moment of the profiled thread counts once,
    for the outermost reason that keeps it from computing.
    """

    wall: int = 0
    forward: int = 0
    backward: int = 0
    optimizer: int = 0
    data: int = 0
    exposed: int = 0
    other: int = 0
    communication: int = 0
    steps: int = 0

    @property
    def compute(self) -> int:
        """Operators, forward and backward."""
        return self.forward + self.backward

    @property
    def hidden(self) -> float:
        """Share of the communication that went on beside the computation, 0 to 1."""
        if self.communication <= 0:
            return 0.0
        return max(0.0, 1.0 - self.exposed / self.communication)

    def as_dict(self) -> dict[str, int]:
        """Give the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass
class Record:
    """One session on one rank.

    Attributes
    ----------
    main : int
        ``tid`` of the thread that was profiled.
    start, end : int
        When the session began and ended.
    """

    main: int
    start: int
    end: int
    threads: list[Thread] = field(default_factory=list)
    steps: int = 0

    @property
    def lost(self) -> int:
        """How many events there was no room for."""
        return sum(thread.lost for thread in self.threads)

    def events(self) -> Iterator[Event]:
        """Give the events of all threads."""
        for thread in self.threads:
            yield from thread.events


def _starts_first(event: Event) -> tuple[int, int]:
    return event.start, -event.end


def merge(threads: list[Thread], others: Mapping[int, list[Event]]) -> list[Thread]:
    """Add events that somebody else recorded, by thread.

    Two recorders see one moment some hundred nanoseconds apart; an event that would end after the
    one it began in is cut there.

    Parameters
    ----------
    threads : list of Thread
        Our own.
    others : mapping
        From a thread's number to events.
    """
    own = {thread.tid: thread for thread in threads}
    for tid, events in others.items():
        old = own.get(tid, Thread(tid, []))
        own[tid] = Thread(tid, _nested([*old.events, *events]), old.lost)
    return list(own.values())


def _nested(events: list[Event]) -> list[Event]:
    open_until: list[int] = []
    found: list[Event] = []
    for event in sorted(events, key=_starts_first):
        while open_until and open_until[-1] <= event.start:
            open_until.pop()
        if open_until and event.end > open_until[-1]:
            event = event._replace(end=open_until[-1])
        open_until.append(event.end)
        found.append(event)
    return sorted(found, key=lambda event: event.end)


def self_times(events: Iterable[Event]) -> Iterator[tuple[Event, int]]:
    """Give each event of one thread with its time less that of the events inside it."""
    stack: list[Event] = []
    inside: list[int] = []  # time of the events inside stack[i]

    def close() -> tuple[Event, int]:
        event = stack.pop()
        return event, event.end - event.start - inside.pop()

    for event in sorted(events, key=_starts_first):
        while stack and stack[-1].end <= event.start:
            yield close()
        if stack:
            inside[-1] += event.end - event.start
        stack.append(event)
        inside.append(0)
    while stack:
        yield close()


def _cover(intervals: Iterable[tuple[int, int]]) -> int:
    """Give the length of the union."""
    total, reached = 0, -1
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _reason(kinds: list[str]) -> str:
    """Give what a moment inside events of these kinds counts for, outermost kind first."""
    for kind in kinds:
        if kind in _TALKING:
            return "exposed"
    for kind in ("data", "optimizer", "backward"):
        if kind in kinds:
            return kind
    return "forward" if "operator" in kinds else "other"


def divide(record: Record) -> Breakdown:
    """Divide the time of the profiled thread, and add up the communication of all threads."""
    found = Breakdown(wall=record.end - record.start, steps=record.steps)
    times = {"forward": 0, "backward": 0, "optimizer": 0, "data": 0, "exposed": 0}
    talk: list[tuple[int, int]] = []
    for thread in record.threads:
        inside = [e for e in thread.events if e.start >= record.start and e.end <= record.end]
        # Waiting of the profiled thread is for what another thread sends: counted there.
        talk += [(e.start, e.end) for e in inside if e.kind in ("communication", "bucket")]
        if thread.tid == record.main:
            for reason, time in _sweep(inside):
                times[reason] = times.get(reason, 0) + time
    found.forward, found.backward = times["forward"], times["backward"]
    found.optimizer, found.data = times["optimizer"], times["data"]
    found.exposed = times["exposed"]
    found.other = found.wall - sum(times[name] for name in times if name != "other")
    found.communication = _cover(talk)
    return found


def _sweep(events: Iterable[Event]) -> Iterator[tuple[str, int]]:
    """Give (reason, time) pieces that cover one thread's events once."""
    stack: list[Event] = []
    at = 0

    def piece(until: int) -> tuple[str, int]:
        nonlocal at
        length, at = until - at, until
        return _reason([event.kind for event in stack]), length

    for event in sorted(events, key=_starts_first):
        while stack and stack[-1].end <= event.start:
            yield piece(stack[-1].end)
            stack.pop()
        if stack:
            yield piece(event.start)
        at = event.start
        stack.append(event)
    while stack:
        yield piece(stack[-1].end)
        stack.pop()
