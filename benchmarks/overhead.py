# SPDX-License-Identifier: Apache-2.0
"""What a call and a training step cost beside their kernels: paceline next to PyTorch."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from benchmarks.processes import Ranks, summary

REPEATS = 3  # of everything, in one turn of a row


def rows_here() -> dict[str, list[str]]:
    """Arguments of the workers: a library, and where its Accelerator comes from."""
    rows = {"paceline": ["paceline", "paceline"]}
    if importlib.util.find_spec("torch"):
        theirs = "accelerate" if importlib.util.find_spec("accelerate") else "torch"
        rows["torch"] = ["torch", theirs]
    return rows


def run(rounds: int) -> dict[str, Any]:
    """Microseconds of CPU time per call and per step, by row; rows take turns."""
    rows = {
        name: Ranks("benchmarks.overhead_worker", args, connected=False)
        for name, args in rows_here().items()
    }
    times: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    try:
        for row in rows.values():
            row.start()
        for _ in range(rounds):
            for name, row in rows.items():
                for what, values in json.loads(row.ask(f"go {REPEATS}")[0]).items():
                    times[name].setdefault(what, []).extend(values)
    finally:
        for row in rows.values():
            row.stop()
    return {"us": times}


def report(result: dict[str, Any]) -> None:
    """Print medians, the spread, and how many times less than PyTorch."""
    ours, theirs = result["us"]["paceline"], result["us"].get("torch", {})
    print("\noverhead, us of CPU time: median (min to max), PyTorch and Accelerate, ratio")
    for what, values in ours.items():
        low, middle, high = summary(values)
        line = f"  {what:28s} {middle:8.2f} ({low:.2f} to {high:.2f})"
        if what in theirs:
            low, other, high = summary(theirs[what])
            line += f" {other:10.2f} ({low:.2f} to {high:.2f}) {other / middle:6.1f}x"
        print(line)
