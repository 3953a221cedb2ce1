# SPDX-License-Identifier: Apache-2.0
"""What a call and a training step cost beside their kernels: paceline next to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

REPEATS = 3  # of everything, in one turn of a row
PEER = "PyTorch and Accelerate"


def run(session: Session) -> Iterator[Table]:
    """Yield microseconds of CPU time per call and per step; rows take turns."""
    module, repeats = "benchmarks.overhead_worker", 1 if session.quick else REPEATS
    theirs = "accelerate" if session.peers.has("accelerate") else "torch"
    rows = {
        "paceline": Ranks(module, ["paceline", "paceline"], connected=False),
        PEER: Ranks(module, ["torch", theirs], connected=False, needs="torch"),
    }
    with session.running(rows, "overhead") as contest:
        took = contest.turns(lambda _, row: row.ask(f"go {repeats}")[0])
    samples: dict[str, dict[str, list[float]]] = {}
    for who, answers in took.items():
        for answer in answers if not isinstance(answers, str) else []:
            for what, values in answer.items():
                samples.setdefault(what, {}).setdefault(who, []).extend(values)
    table = Table("overhead", "Fixed costs, tensors of 4 x 4", "us of CPU time")
    for what, by in samples.items():
        other = took[PEER] if isinstance(took[PEER], str) else by.get(PEER, [])
        table.rows.append(Row(what, by.get("paceline", []), {PEER: other}))
    yield table
