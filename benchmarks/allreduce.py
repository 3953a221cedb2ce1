# SPDX-License-Identifier: Apache-2.0
"""All-reduce of fp32 on two ranks: bandwidth and latency, next to Gloo and to a copy loop.

A copy of n bytes by each rank is the traffic of an in-place all-reduce of n bytes between two
ranks: each reads n bytes (half of both parts) and writes n.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from benchmarks.processes import Ranks, summary

SIZES = {4: 2000, 1 << 20: 200, 16 << 20: 20, 64 << 20: 6}


def run(rounds: int) -> dict[str, Any]:
    """Seconds per call, by size and kind; the slower rank counts."""
    libraries = ["paceline"] + (["torch"] if importlib.util.find_spec("torch") else [])
    ranks = [Ranks("benchmarks.reduce_worker", [name], 2) for name in libraries]
    result: dict[str, dict[str, list[float]]] = {str(n): {} for n in SIZES}
    try:
        for row in ranks:
            row.start()
        for _ in range(rounds):
            for nbytes, repeats in SIZES.items():
                for row in ranks:
                    answers = [json.loads(a) for a in row.ask(f"{nbytes} {repeats}")]
                    for kind in answers[0]:
                        worst = max(answer[kind] for answer in answers)
                        result[str(nbytes)].setdefault(kind, []).append(worst)
    finally:
        for row in ranks:
            row.stop()
    return {"seconds": result}


def report(result: dict[str, Any]) -> None:
    print("\nall-reduce, fp32, 2 ranks: median (min to max)")
    for size, kinds in result["seconds"].items():
        nbytes = int(size)
        for kind, values in kinds.items():
            if nbytes < 1024:
                low, middle, high = (1e6 * v for v in summary(values))
                print(f"  {nbytes:>9d} B {kind:20s} {middle:9.2f} us ({low:.2f} to {high:.2f})")
            else:
                low, middle, high = summary([nbytes / v / 1e9 for v in values])
                print(
                    f"  {nbytes >> 20:>7d} MiB {kind:20s} {middle:9.2f} GB/s "
                    f"({low:.2f} to {high:.2f})"
                )
