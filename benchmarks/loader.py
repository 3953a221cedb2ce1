# SPDX-License-Identifier: Apache-2.0
"""The data loader over rows of 784 floats, batch 256: in order and shuffled, beside its peers.

Each row of the table is a process of its own; all take turns. ``NumPy gather`` is the floor of a
loader: ``array[indices]`` per batch, nothing else; in order it copies slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Table

COLUMNS = 784
BATCH = 256
SIZES = {"1 M rows": 1_000_000, "60 k rows": 60_000}
BATCHES = 100  # in one turn
KINDS = ["paceline", "paceline 2 workers", "numpy", "torch", "torch 2 workers"]
PEERS = {"numpy": "NumPy gather", "torch": "PyTorch", "torch 2 workers": "PyTorch, 2 workers"}


def run(session: Session) -> Iterator[Table]:
    """Yield microseconds per batch, by size and order."""
    batches = 4 if session.quick else BATCHES
    for title, rows in {"1 k rows": 1000}.items() if session.quick else SIZES.items():
        needed = rows * COLUMNS * 4 * (len(KINDS) + 1)
        if needed > available_bytes():
            session.say(f"loader, {title}: left out, needs {needed / 1e9:.0f} GB of free memory")
            continue
        for order in ("in order", "shuffled"):
            with session.running(workers(rows, order), f"loader {title} {order}") as contest:
                took = contest.turns(partial(microseconds, batches))
            name = f"DataLoader, {title} of {COLUMNS} floats, batch {BATCH}, {order}"
            table = Table("loader", name, "us per batch")
            table.rows = [row_of("no workers", "paceline", took, PEERS),
                          row_of("2 workers", "paceline 2 workers", took, PEERS)]  # fmt: skip
            yield table


def workers(rows: int, order: str) -> dict[str, Ranks]:
    """The processes of one table."""
    return {
        kind: Ranks("benchmarks.loader_worker", [kind, str(rows), order], threads=2,
                    needs="torch" if kind.startswith("torch") else "")
        for kind in KINDS
    }  # fmt: skip


def microseconds(batches: int, _: str, row: Ranks) -> float:
    """Ask for one turn's time per batch."""
    answer: Any = row.ask(f"go {batches}")[0]
    return float(1e6 * answer / batches)


def available_bytes() -> int:
    """Memory that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024
