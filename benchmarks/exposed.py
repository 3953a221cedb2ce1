# SPDX-License-Identifier: Apache-2.0
"""What of the gradients' reduction is not hidden: steps of two processes with and without it.

One thread and one core each. ``no_sync`` leaves the reduction out in the same two processes;
"unconnected" are two processes at the same time that have no group at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table
from benchmarks.train import TITLES

STEPS = {"gpt-b1": 8, "gpt": 2, "mlp": 60, "tiny": 2}
TORCH = "DDP on Gloo"
APART = "paceline, unconnected"


def run(session: Session) -> Iterator[Table]:
    """Yield one table per model and precision: milliseconds of a step of the slower rank."""
    wanted = ("gpt-b1", *(session.models or ("gpt", "mlp")))
    models = ("tiny",) if session.quick else dict.fromkeys(m for m in wanted if m in STEPS)
    for model in models:
        for precision in session.precisions:
            yield _table(session, model, precision)


def _table(session: Session, model: str, precision: str) -> Table:
    def pair(library: str, connected: bool = True) -> Ranks:
        args = [library, model, precision]
        needs = "torch" if library == "torch" else ""
        return Ranks("benchmarks.exposed_worker", args, 2, connected, needs=needs)

    rows = {"paceline": pair("paceline"), APART: pair("paceline", False), TORCH: pair("torch")}

    def ask(name: str, row: Ranks) -> dict[str, float]:
        kinds = ["sync"] if name == APART else ["sync", "no_sync"]
        took: dict[str, float] = {}
        for kind in kinds:
            answers = row.ask(f"go {kind} {STEPS[model]}")
            took[kind] = 1e3 * max(sorted(a)[len(a) // 2] for a in answers)
        return took

    with session.running(rows, f"exposed {model} {precision}") as contest:
        took = contest.turns(ask)
    table = Table("exposed", f"{TITLES[model]}, {precision}, 2 processes", "ms per step")
    ours = _of(took, "paceline", "sync")
    peers = {
        "paceline, no_sync": _of(took, "paceline", "no_sync"),
        APART: _of(took, APART, "sync"),
        TORCH: _of(took, TORCH, "sync"),
        f"{TORCH}, no_sync": _of(took, TORCH, "no_sync"),
    }
    table.rows.append(Row("step", ours, peers))
    peers = {TORCH: _exposed(took, TORCH)}
    table.rows.append(Row("exposed, % of the step", _exposed(took, "paceline"), peers))
    return table


def _of(took: dict[str, Any], name: str, kind: str) -> Any:
    answers = took[name]
    return answers if isinstance(answers, str) else [answer[kind] for answer in answers]


def _exposed(took: dict[str, Any], name: str) -> Any:
    answers = took[name]
    if isinstance(answers, str):
        return answers
    return [100 * (1 - a["no_sync"] / a["sync"]) for a in answers]
