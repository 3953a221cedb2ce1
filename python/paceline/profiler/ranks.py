# SPDX-License-Identifier: Apache-2.0
"""Puts the records of all ranks together: one trace file, one table.

Every rank writes ``profile_<rank>.json``; the events also go to rank 0 through the group, packed,
since machines may share no folder, and rank 0 writes them all to ``profile.json``.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._call_site import frames_of_ours
from ..utils.dataclasses import not_yet
from .chrome import events_text, write_trace
from .record import Breakdown
from .schedule import Schedule

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..utils.dataclasses import ProfileKwargs
    from .session import Profiler

__all__ = ["build", "write_all"]


def write_all(profiler: Profiler, folder: str, group: ProcessGroup | None) -> None:
    """Write every rank's file and the common one. All ranks must call it.

    Parameters
    ----------
    profiler : Profiler
        Of this rank, stopped. On rank 0 it gets the breakdowns of all.
    folder : str
        Where the files go; made if it is not there.
    group : ProcessGroup or None
        The ranks; None if this one is alone.
    """
    os.makedirs(folder, exist_ok=True)
    rank = profiler.process.rank
    if group is not None:
        profiler.process.shift = _shift(group)
    own = list(events_text(profiler.record, profiler.process))
    write_trace(os.path.join(folder, f"profile_{rank}.json"), own)
    if group is None:
        write_trace(os.path.join(folder, "profile.json"), own)
        return
    packed = zlib.compress("\n".join(own).encode(), 1)
    parcel = (packed, profiler.ranks[rank].as_dict())
    parcels = group.gather_object(parcel, 0, depth=frames_of_ours())
    if parcels is not None:
        profiler.ranks = {at: Breakdown(**times) for at, (_, times) in enumerate(parcels)}
        texts = (text for events, _ in parcels for text in _unpacked(events))
        write_trace(os.path.join(folder, "profile.json"), texts)
    group.barrier(depth=frames_of_ours())  # after the block the files are there, on every rank


def _unpacked(packed: bytes) -> Iterator[str]:
    yield from zlib.decompress(packed).decode().split("\n")


def _shift(group: ProcessGroup) -> int:
    """Give what brings this rank's clock to rank 0's, in nanoseconds.

    On one machine all read the same clock, and it is 0. Between machines the ranks look at their
    clocks right after a barrier, which is as exact as the barrier is: some tenths of a
    millisecond.
    """
    from ..distributed.linux import same_machine_id

    group.barrier(depth=frames_of_ours())
    mine = (same_machine_id().partition("/")[0], time.monotonic_ns())  # the boot: one clock
    first, *_ = clocks = group.all_gather_object(mine, depth=frames_of_ours())
    assert len(clocks) == group.world_size
    return 0 if first[0] == mine[0] else first[1] - mine[1]


def build(handler: ProfileKwargs, rank: int) -> Profiler:
    """Make the profiler that ``ProfileKwargs`` ask for.

    Parameters
    ----------
    handler : ProfileKwargs
        What to record.
    rank : int
        Number of this process.

    Raises
    ------
    NotImplementedError
        When it asks for a device that nothing runs on.
    """
    from .session import Profiler

    activities = {str(one) for one in handler.activities or ("cpu",)}
    if "cpu" not in activities:
        not_yet(
            f"ProfileKwargs(activities={sorted(activities)})",
            "only the processor is profiled: leave it out, or add 'cpu'",
        )
    options = handler.schedule_option
    return Profiler(
        schedule=None if options is None else Schedule(**options),
        on_trace_ready=handler.on_trace_ready,
        record_shapes=handler.record_shapes,
        rank=rank,
        libraries=True,
    )
