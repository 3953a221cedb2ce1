# SPDX-License-Identifier: Apache-2.0
"""Training steps: paceline next to PyTorch, 1 thread, 2 threads, 2 processes, interleaved."""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from benchmarks.processes import Ranks, summary

# Name, library, threads, processes, one group.
ROWS = [
    ("paceline 1 thread", "paceline", 1, 1, True),
    ("paceline 2 threads", "paceline", 2, 1, True),
    ("paceline 2 processes", "paceline", 1, 2, True),
    ("paceline 2 unconnected", "paceline", 1, 2, False),
    ("torch 1 thread", "torch", 1, 1, True),
    ("torch 2 threads", "torch", 2, 1, True),
    ("torch 2 processes (DDP, Gloo)", "torch", 1, 2, True),
]

# What is divided by what; above 1 is better.
RATIOS = [
    ("1 thread, against torch", "torch 1 thread", "paceline 1 thread"),
    ("2 threads, against torch", "torch 2 threads", "paceline 2 threads"),
    ("2 processes, against DDP", "torch 2 processes (DDP, Gloo)", "paceline 2 processes"),
    ("2 processes, share of unconnected", "paceline 2 unconnected", "paceline 2 processes"),
]
STEPS = {"gpt": 3, "gpt-b1": 10, "mlp": 100}


def rows_here() -> list[tuple[str, str, int, int, bool]]:
    if importlib.util.find_spec("torch"):
        return ROWS
    print("PyTorch is not installed: its rows are left out")
    return [row for row in ROWS if row[1] != "torch"]


def run(model: str, precision: str, rounds: int) -> dict[str, Any]:
    """One table: milliseconds per step by row, and ratios pair by pair of one round."""
    ranks = {
        name: Ranks("benchmarks.worker", [library, model, precision, str(threads)], world,
                    connected, threads)
        for name, library, threads, world, connected in rows_here()
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ranks}
    try:
        for row in ranks.values():
            row.start()
        for _ in range(rounds):
            for name, row in ranks.items():
                times[name].append(1e3 * row.seconds_per_step(STEPS[model]))
    finally:
        for row in ranks.values():
            row.stop()
    return {"model": model, "precision": precision, "ms": times, "ratios": ratios(times)}


def ratios(times: dict[str, list[float]]) -> dict[str, list[float]]:
    return {
        name: [a / b for a, b in zip(times[over], times[under], strict=True)]
        for name, over, under in RATIOS
        if over in times and under in times
    }


def report(result: dict[str, Any]) -> None:
    print(f"\n{result['model']} {result['precision']}, ms per step: median (min to max)")
    for name, values in result["ms"].items():
        low, middle, high = summary(values)
        print(f"  {name:34s} {middle:9.2f} ({low:.2f} to {high:.2f})")
    for name, values in result["ratios"].items():
        low, _, high = summary(values)
        print(f"  {name:38s} {statistics.median(values):5.2f}x ({low:.2f} to {high:.2f})")
