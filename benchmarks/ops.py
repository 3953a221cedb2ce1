# SPDX-License-Identifier: Apache-2.0
"""Every operator's speed, driven by the table that tests its value and gradient."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.session import Session
from benchmarks.table import Row, Table


def run(session: Session) -> Iterator[Table]:
    """Yield forward and backward, fp32 and bf16, of this process's threads."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import paceline
    from numerics.op_table import CASES

    table = Table("ops", "Operators", "us per call")
    cases = [case for case in CASES if case.big is not None]
    try:
        for case in cases[:1] if session.quick else cases:
            session.say(f"ops: {case.label}")
            for dtype in (paceline.float32, paceline.bfloat16):
                label = f"{case.label} {str(dtype).removeprefix('paceline.')}"
                forward, backward = times(case, dtype, session.rounds)
                table.rows += [Row(label, forward), Row(f"{label} backward", backward)]
    except KeyboardInterrupt:
        session.interrupted = True
    yield table


def times(case: Any, dtype: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of forward and backward, call by call."""
    import paceline

    arrays = case.big(np.random.default_rng(0))
    args = [
        t if t.dtype == paceline.int64 else t.to(dtype).requires_grad_()
        for t in (paceline.from_numpy(np.array(a)) for a in arrays)
    ]
    forward, backward, seed = [], [], None
    for _ in range(rounds + 1):
        start = time.perf_counter()
        out = case.call(*args)
        middle = time.perf_counter()
        if seed is None:
            seed = paceline.ones_like(out)
        out.backward(seed)
        end = time.perf_counter()
        forward.append(1e6 * (middle - start))
        backward.append(1e6 * (end - middle))
    return forward[1:], backward[1:]  # the first call makes primitives and pages
