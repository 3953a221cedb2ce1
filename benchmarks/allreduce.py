# SPDX-License-Identifier: Apache-2.0
"""All-reduce of fp32: latency and bandwidth on 2 and 4 ranks, next to Gloo, three MPIs and limits.

The limits are loops in C with the traffic of an all-reduce and nothing around it, see
``benchmarks/c/collectives.c``; the latency of a C call is taken there as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.loops import without_core
from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

SIZES = {4: 2000, 1 << 20: 100, 16 << 20: 10, 64 << 20: 4}
WORLDS = (2, 4)
MPI = {"Open MPI": "openmpi", "MPICH": "mpich", "Intel MPI": "impi"}
IN_C = "paceline in C"
FLAGS = "limit, an exchange of flags"
IN_PLACE = "limit, in place"
STAGED = "limit, staged"
Took = dict[str, Any]


def rows(world: int) -> dict[str, Ranks]:
    """Every row of a number of ranks."""
    result = {
        "paceline": Ranks("benchmarks.reduce_worker", ["paceline"], world),
        IN_C: Ranks(
            "benchmarks.loops", ["collectives", str(world)], pin=False, absent=without_core()
        ),
        "Gloo": Ranks("benchmarks.reduce_worker", ["torch"], world, needs="torch"),
    }
    for shown, peer in MPI.items():
        args = [peer, str(world)]
        result[shown] = Ranks("benchmarks.mpi_worker", args, needs=peer, pin=False)
    return result


def run(session: Session) -> Iterator[Table]:
    """Yield latency and bandwidth by number of ranks; the slowest rank counts."""
    sizes = {4: 10, 1 << 16: 2} if session.quick else SIZES
    for world in (2,) if session.quick else WORLDS:

        def ask(name: str, row: Ranks, world: int = world) -> dict[tuple[int, str], float]:
            return {
                (nbytes, kind): seconds
                for nbytes, repeats in sizes.items()
                for kind, seconds in turn(name, row, nbytes, max(1, repeats * 2 // world)).items()
            }

        with session.running(rows(world), f"allreduce on {world}") as contest:
            took = contest.turns(ask)
        yield latency(took, world)
        yield bandwidth(took, world, list(sizes)[1:])


def turn(name: str, row: Ranks, nbytes: int, repeats: int) -> dict[str, float]:
    """Seconds of a call by kind, as one row gives them."""
    if name == IN_C:
        kinds = ["call", "flags"] if nbytes == 4 else ["inplace", "staged"]
        return {k: row.ask(f"go {k} {nbytes} {repeats * (5 if nbytes == 4 else 1)}")[0]
                for k in kinds}  # fmt: skip
    answers = row.ask(f"go {nbytes} {repeats}")
    if name in MPI:
        return {"all_reduce": answers[0]}
    return {kind: max(a[kind] for a in answers) for kind in answers[0]}


def samples(took: Took, who: str, key: tuple[int, str], shown: Callable[[float], float]) -> Any:
    """One row's figures of one kind, or why there are none."""
    answers = took[who]
    return answers if isinstance(answers, str) else [shown(a[key]) for a in answers]


def latency(took: Took, world: int) -> Table:
    """4 bytes: from Python beside the peers, from C beside what two or four words cost."""

    def us(who: str, kind: str) -> Any:
        return samples(took, who, (4, kind), lambda seconds: 1e6 * seconds)

    table = Table("allreduce", f"All-reduce, 4 bytes, {world} ranks", "us")
    peers = {"Gloo": us("Gloo", "all_reduce"), **{m: us(m, "all_reduce") for m in MPI}}
    table.rows.append(Row("from Python", us("paceline", "ordinary"), peers))
    call = us(IN_C, "call")
    ours = [] if isinstance(call, str) else call
    table.rows.append(Row("C call", ours, {FLAGS: us(IN_C, "flags")}))
    return table


def bandwidth(took: Took, world: int, sizes: list[int]) -> Table:
    """Bytes of the buffer per second; a bucket lies in memory that the ranks share."""
    title = f"All-reduce, fp32, {world} ranks"
    table = Table("allreduce", title, "GB/s of the buffer", lower_is_better=False)
    for nbytes in sizes:
        size = f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"

        def rate(who: str, kind: str, nbytes: int = nbytes) -> Any:
            return samples(took, who, (nbytes, kind), lambda seconds: nbytes / seconds / 1e9)

        peers = {"Gloo": rate("Gloo", "all_reduce"), **{m: rate(m, "all_reduce") for m in MPI}}
        for shown, kind, limit, loop in (
            ("bucket, in place", "bucket", IN_PLACE, "inplace"),
            ("ordinary buffer", "ordinary", STAGED, "staged"),
        ):
            limits = {limit: rate(IN_C, loop)}
            table.rows.append(Row(f"{size}, {shown}", rate("paceline", kind), {**limits, **peers}))
    return table
