# SPDX-License-Identifier: Apache-2.0
"""AdamW over the parameters of GPT-2 124 M: the step alone, with clipping, with unscaling too.

The limit is a loop in C over four arrays of that size that reads all and writes three
(``benchmarks/c/traffic.c``). Gradients are fresh for every step that is timed, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

PARAMETERS = 124_000_000
THREADS = (1, 2)
LIMIT = "limit, loop with the same traffic"
TORCH = "PyTorch fused"
CASES = {
    "step": "step",
    "clip": "clip_grad_norm_, step",
    "unscale": "unscale_, clip_grad_norm_, step",
}


def run(session: Session) -> Iterator[Table]:
    """Yield one table: milliseconds by number of threads."""
    count = 100_000 if session.quick else PARAMETERS
    table = Table("adamw", f"AdamW, {count / 1e6:.0f} M parameters, fp32", "ms")
    for threads in THREADS:

        def row(library: str, needs: str = "", threads: int = threads) -> Ranks:
            args = [library, str(count), str(threads)]
            return Ranks("benchmarks.adamw_worker", args, threads=threads, needs=needs)

        args = ["traffic", str(count), str(threads)]
        rows = {
            "paceline": row("paceline"),
            TORCH: row("torch", "torch"),
            LIMIT: Ranks("benchmarks.loops", args, threads=threads),
        }

        def ask(name: str, row: Ranks) -> dict[str, float]:
            if name == LIMIT:
                return dict.fromkeys(CASES, 1e3 * row.ask("go 2")[0])
            return {case: 1e3 * row.ask(f"go {case}")[0] for case in CASES}

        with session.running(rows, f"adamw, {threads} threads") as contest:
            took = contest.turns(ask)
        for case, shown in CASES.items():
            peers = {name: _of(took, name, case) for name in (LIMIT, TORCH)}
            who = f"{threads} thread{'s' if threads > 1 else ''}, {shown}"
            table.rows.append(Row(who, _of(took, "paceline", case), peers))
    yield table


def _of(took: dict[str, Any], name: str, case: str) -> Any:
    answers = took[name]
    return answers if isinstance(answers, str) else [answer[case] for answer in answers]
