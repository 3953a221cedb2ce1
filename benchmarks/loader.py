# SPDX-License-Identifier: Apache-2.0
"""The data loader over rows of 784 floats, batch 256: in order and shuffled, beside its peers.

Seconds are for a fixed number of batches, each row of the table in a process of its own; all take
turns. ``numpy gather`` is the floor of a loader: ``array[indices]`` per batch, nothing else.
``numpy slice copy`` is that for reading in order.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import Ranks, summary

COLUMNS = 784
BATCH = 256
SIZES = {"1 M rows": 1_000_000, "60 k rows": 60_000}
BATCHES = 100  # in one turn
KINDS = ["paceline", "paceline 2 workers", "numpy"]
PEERS = ["torch", "torch 2 workers"]


def run(rounds: int) -> list[dict[str, Any]]:
    """Seconds for `BATCHES` batches, by size, order and kind."""
    kinds = KINDS + (PEERS if importlib.util.find_spec("torch") else [])
    tables = []
    for title, rows in SIZES.items():
        needed = rows * COLUMNS * 4 * (len(kinds) + 1)
        if needed > available_bytes():
            print(f"loader, {title}: left out, needs {needed / 1e9:.0f} GB of free memory")
            continue
        for order in ("in order", "shuffled"):
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            workers = {kind: Ranks("benchmarks.loader_worker", [kind, str(rows), order], threads=2)
                       for kind in kinds}  # fmt: skip
            try:
                for kind, worker in workers.items():
                    print(f"loader, {title}, {order}: starts {kind}", file=sys.stderr)
                    worker.start()
                for turn in range(rounds):
                    print(f"loader, {title}, {order}: round {turn + 1}", file=sys.stderr)
                    for kind, worker in workers.items():
                        seconds[kind].append(float(json.loads(worker.ask(f"go {BATCHES}")[0])))
            finally:
                for worker in workers.values():
                    worker.stop()
            tables.append({"size": title, "order": order, "seconds": seconds})
    return tables


def available_bytes() -> int:
    """Memory that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def report(tables: list[dict[str, Any]]) -> None:
    """Print microseconds per batch, and ratios to PyTorch without workers and to NumPy."""
    for table in tables:
        seconds = table["seconds"]
        what = f"{table['size']} x {COLUMNS} float32, batch {BATCH}, {table['order']}"
        print(f"\nDataLoader, {what}: us per batch, median (min to max)")
        for kind, values in seconds.items():
            low, middle, high = (1e6 * v / BATCHES for v in summary(values))
            ratios = [
                f"{_ratio(seconds, other, kind):6.2f}x {name}"
                for other, name in (("torch", "PyTorch"), ("numpy", "NumPy's rate"))
                if other in seconds and other != kind
            ]
            print(f"  {kind:20s} {middle:9.1f} ({low:.1f} to {high:.1f})  {'  '.join(ratios)}")


def _ratio(seconds: dict[str, list[float]], other: str, kind: str) -> float:
    """How many times faster than `other`, turn by turn: the median."""
    pairs = zip(seconds[other], seconds[kind], strict=True)
    return summary([theirs / own for theirs, own in pairs])[1]
