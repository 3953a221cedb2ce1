# SPDX-License-Identifier: Apache-2.0
"""A session as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format is Chrome's trace-event JSON: complete events ("X") with times in microseconds, one
process for each rank, one line for each thread, names by metadata events ("M"). All ranks of a
machine read one clock, so that their files fit together as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from .._replacing import replacing
from .record import Event, Record, Thread

__all__ = ["Process", "events_text", "write_trace"]


class Process:
    """Which rank the events are of, for the names in the picture.

    Parameters
    ----------
    rank : int
        Stands for the process: pids of several machines may be equal.
    host : str
        Name of the machine.
    pid : int
        The system's number of the process.
    shift : int
        Nanoseconds to add to its times, to have them on rank 0's clock.
    """

    def __init__(self, rank: int, host: str, pid: int, shift: int = 0) -> None:
        self.rank = rank
        self.host = host
        self.pid = pid
        self.shift = shift


def _microseconds(ns: int) -> str:
    # All three digits: rounded times would overlap where events follow each other closely.
    return f"{ns // 1000}.{ns % 1000:03d}"


def _metadata(process: Process, tid: int, what: str, args: dict[str, Any]) -> str:
    return json.dumps({"name": what, "ph": "M", "pid": process.rank, "tid": tid, "args": args})


def _role(thread: Thread, main: int) -> tuple[str, int]:
    if thread.tid == main:
        return "main", 0
    if any(event.kind == "bucket" for event in thread.events):
        return "communication", 1
    return f"thread {thread.tid}", 2


def _one(event: Event, process: Process, tid: int) -> str:
    args: dict[str, Any] = {}
    if event.nbytes > 0:
        args["bytes"] = event.nbytes
        args["GB/s"] = round(event.nbytes / max(event.end - event.start, 1), 3)
    if event.detail:
        args["input shapes"] = event.detail
    start = _microseconds(event.start + process.shift)
    return (
        f'{{"name":{json.dumps(event.label)},"cat":"{event.kind}","ph":"X","ts":{start},'
        f'"dur":{_microseconds(event.end - event.start)},"pid":{process.rank},"tid":{tid},'
        f'"args":{json.dumps(args)}}}'
    )


def events_text(record: Record, process: Process) -> Iterator[str]:
    """Give the trace events of one rank, each as JSON text.

    Parameters
    ----------
    record : Record
        What was recorded.
    process : Process
        Whose it is.
    """
    name = f"rank {process.rank} ({process.host}, pid {process.pid})"
    yield _metadata(process, 0, "process_name", {"name": name})
    yield _metadata(process, 0, "process_sort_index", {"sort_index": process.rank})
    for thread in record.threads:
        if not thread.events:
            continue
        role, order = _role(thread, record.main)
        yield _metadata(process, thread.tid, "thread_name", {"name": role})
        yield _metadata(process, thread.tid, "thread_sort_index", {"sort_index": order})
        for event in thread.events:
            yield _one(event, process, thread.tid)


def write_trace(path: str, events: Iterable[str]) -> None:
    """Write events as one file; a reader sees the whole of it or nothing.

    Parameters
    ----------
    path : str
        The file; one that is there is replaced.
    events : iterable of str
        As ``events_text`` gives them.
    """
    with replacing(path) as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = ""
        for text in events:
            file.write(f"{separator}{text}")
            separator = ",\n"
        file.write("\n]}\n")
