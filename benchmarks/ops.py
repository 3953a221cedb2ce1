# SPDX-License-Identifier: Apache-2.0
"""Every operator's speed, driven by the table that tests its value and gradient."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def run(rounds: int) -> dict[str, Any]:
    """Microseconds per forward and backward call, fp32 and bf16, this process's threads."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import paceline
    from numerics.op_table import CASES

    result: dict[str, dict[str, list[float]]] = {}
    for case in CASES:
        if case.big is None:
            continue
        for dtype in (paceline.float32, paceline.bfloat16):
            arrays = case.big(np.random.default_rng(0))
            args = [
                t if t.dtype == paceline.int64 else t.to(dtype).requires_grad_()
                for t in (paceline.from_numpy(np.array(a)) for a in arrays)
            ]
            label = f"{case.label} {str(dtype).removeprefix('paceline.')}"
            result[label] = {"forward": [], "backward": []}
            seed = None
            for _ in range(rounds + 1):
                start = time.perf_counter()
                out = case.call(*args)
                middle = time.perf_counter()
                if seed is None:
                    seed = paceline.ones_like(out)
                out.backward(seed)
                end = time.perf_counter()
                result[label]["forward"].append(1e6 * (middle - start))
                result[label]["backward"].append(1e6 * (end - middle))
            for times in result[label].values():
                times.pop(0)  # the first call makes primitives and pages
    return {"us": result}


def report(result: dict[str, Any]) -> None:
    print("\noperators, us per call: median forward, backward")
    for label, times in result["us"].items():
        forward, backward = (statistics.median(times[k]) for k in ("forward", "backward"))
        print(f"  {label:42s} {forward:10.1f} {backward:10.1f}")
