# SPDX-License-Identifier: Apache-2.0
"""The data loader over rows of 784 floats, batch 256: in order and shuffled, beside its peers.

Each library is a process of its own with an array of its own, all pages touched; all take turns.
``NumPy gather`` is the floor of a loader: ``array[indices]`` per batch, nothing else; in order it
is ``NumPy slice copy``. Both use one thread, ours and PyTorch's as many as there are processors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Table

COLUMNS = 784
BATCH = 256
SIZES = {"1 M rows": 1_000_000, "60 k rows": 60_000}
BATCHES = 1000  # in one turn, if an epoch has as many: 25 ms of ours, and not a time slice
# What each process is asked for, and how its figures are called.
ASKED = {
    "paceline": {"plain": "ours", "workers": "ours, 2 workers", "prepared": "ours, prepared"},
    "paceline bridge": {"prepared": "ours, bridge"},
    "numpy": {"gather": "NumPy gather", "slices": "NumPy slice copy"},
    "torch": {"plain": "PyTorch", "many": "PyTorch, __getitems__", "workers": "PyTorch, 2 workers",
              "prepared": "Accelerate"},
}  # fmt: skip
NUMPY = ["NumPy gather", "NumPy slice copy"]
ROWS = {
    "no workers": ("ours", ["PyTorch", "PyTorch, __getitems__", *NUMPY]),
    "2 workers": ("ours, 2 workers", ["PyTorch, 2 workers"]),
    "prepared": ("ours, prepared", ["Accelerate", *NUMPY]),
    "prepared, PyTorch's loader": ("ours, bridge", ["Accelerate", *NUMPY]),
}
# What is told of a turn, its unit and how many of it a second has.
TOLD = {"": ("us per batch", 1, 1e6), ", processor time": ("us per batch", 2, 1e6),
        ", an epoch's order and first batch": ("ms", 0, 1e3)}  # fmt: skip


def run(session: Session) -> Iterator[Table]:
    """Yield tables of wall time, processor time and an epoch's beginning, by size and order."""
    for title, rows in {"1 k rows": 1000}.items() if session.quick else SIZES.items():
        needed = rows * COLUMNS * 4 * (len(ASKED) + 1)
        if needed > available_bytes():
            session.say(f"loader, {title}: left out, needs {needed / 1e9:.0f} GB of free memory")
            continue
        for order in ("in order", "shuffled"):
            with session.running(workers(rows, order), f"loader {title} {order}") as contest:
                took = by_kind(contest.turns(ask))
            name = f"DataLoader, {title} of {COLUMNS} floats, batch {BATCH}, {order}"
            yield from tables(name, took)


def workers(rows: int, order: str) -> dict[str, Ranks]:
    """The processes of one table."""
    needs = {"torch": "torch", "paceline bridge": "torch"}
    return {
        name: Ranks("benchmarks.loader_worker", [name.split()[-1], str(rows), order], threads=2,
                    needs=needs.get(name, ""))
        for name in ASKED
    }  # fmt: skip


def ask(name: str, row: Ranks) -> dict[str, Any]:
    """Ask a process for one turn of each of its kinds."""
    found = {shown: row.ask(f"go {kind} {BATCHES}")[0] for kind, shown in ASKED[name].items()}
    return {shown: figures for shown, figures in found.items() if figures is not None}


def by_kind(took: Mapping[str, list[dict[str, Any]] | str]) -> dict[str, Any]:
    """Give the turns of each kind, or why there are none."""
    found: dict[str, Any] = {}
    for name, answers in took.items():
        for shown in ASKED[name].values():
            if isinstance(answers, str):
                found[shown] = answers
            elif answers and shown in answers[0]:
                found[shown] = [answer[shown] for answer in answers]
    return found


def tables(name: str, took: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of one size and order."""
    for what, (unit, at, factor) in TOLD.items():
        told = {
            shown: turns if isinstance(turns, str) else [factor * turn[at] for turn in turns]
            for shown, turns in took.items()
        }
        table = Table("loader", name + what, unit)
        for case, (ours, peers) in ROWS.items():
            # The processor time of workers is not that of the process that is asked.
            if isinstance(told.get(ours), list) and not ("workers" in ours and at == 2):
                table.rows.append(row_of(case, ours, told, {peer: peer for peer in peers}))
        yield table


def available_bytes() -> int:
    """Memory that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024
