# SPDX-License-Identifier: Apache-2.0
"""AdamW over the parameters of GPT-2 124 M: the step alone, with clipping, with unscaling too.

The limit is a loop in C over four arrays of that size that reads all and writes three
(``benchmarks/c/traffic.c``). Gradients are new for every step that is timed, as in training, from
a backward pass: one that clips may take the norm in there, so what that pass takes longer than in a
process that never clips is added to the step.
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
CLIPPING = "paceline, clipping"
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

        def row(library: str, cases: list[str], needs: str = "", threads: int = threads) -> Ranks:
            args = [library, str(count), str(threads), *cases]
            return Ranks("benchmarks.adamw_worker", args, threads=threads, needs=needs)

        args = ["traffic", str(count), str(threads)]
        rows = {
            "paceline": row("paceline", ["step"]),
            CLIPPING: row("paceline", ["clip", "unscale"]),
            TORCH: row("torch", list(CASES), "torch"),
            LIMIT: Ranks("benchmarks.loops", args, threads=threads),
        }

        def ask(name: str, row: Ranks) -> dict[str, list[float]]:
            if name == LIMIT:
                return dict.fromkeys(CASES, [0.0, 1e3 * row.ask("go 2")[0]])
            return {c: [1e3 * s for s in row.ask(f"go {c}")[0]] for c in row.args[3:]}

        with session.running(rows, f"adamw, {threads} threads") as contest:
            took = contest.turns(ask)
        took["paceline"] = _joined(took["paceline"], took[CLIPPING])
        for case, shown in CASES.items():
            peers = {name: _of(took, name, case) for name in (LIMIT, TORCH)}
            who = f"{threads} thread{'s' if threads > 1 else ''}, {shown}"
            table.rows.append(Row(who, _of(took, "paceline", case), peers))
    yield table


def _of(took: dict[str, Any], name: str, case: str) -> Any:
    answers = took[name]
    return answers if isinstance(answers, str) else [answer[case][1] for answer in answers]


def _joined(plain: Any, clipping: Any) -> Any:
    """Every case of ours; those that clip with what their backward pass takes longer."""
    for answer in plain, clipping:
        if isinstance(answer, str):
            return answer
    return [
        one | {case: [0.0, step + passed - one["step"][0]] for case, (passed, step) in two.items()}
        for one, two in zip(plain, clipping, strict=True)
    ]
