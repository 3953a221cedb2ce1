# SPDX-License-Identifier: Apache-2.0
"""PyTorch models trained through paceline, beside Accelerate with DDP on Gloo, interleaved.

Step time of two processes beside two that do not communicate, whose ratio is the share that a step
keeps, and the peak memory of a rank: resident, and how much of that is memory that ranks share
(each rank counts it whole).
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Table

OURS = "paceline, bridge"
DDP = "Accelerate, DDP on Gloo"
ALONE = "PyTorch, unconnected"
STEPS = {"gpt": 3, "gpt2": 1, "tiny": 2}
WORLD = 2


def run(session: Session) -> Iterator[Table]:
    """Yield milliseconds per step by model, and the memory of the larger rank."""
    for model in ("tiny",) if session.quick else ("gpt", "gpt2"):
        yield from tables(session, model, "fp32")


def tables(session: Session, model: str, precision: str) -> Iterator[Table]:
    """Yield the tables of one model."""

    def worker(library: str, needs: str, connected: bool = True) -> Ranks:
        args = [library, model, precision]
        return Ranks("benchmarks.bridge_worker", args, WORLD, connected, needs=needs)

    rows = {
        OURS: worker("paceline", "torch"),
        DDP: worker("accelerate", "accelerate"),
        ALONE: worker("torch", "torch", False),
    }

    def ask(_: str, row: Ranks) -> tuple[float, list[float]]:
        seconds = row.seconds_per_step(STEPS[model])
        return 1e3 * seconds, max(row.ask("memory"))

    with session.running(rows, f"bridge {model} {precision}") as contest:
        took = contest.turns(ask)
    if isinstance(took[OURS], str):
        session.say(f"bridge: left out, PyTorch is {took[OURS]}")
        return

    def of(pick: int) -> dict[str, list[float] | str]:
        figures: dict[str, list[float] | str] = {}
        for name, answers in took.items():
            if isinstance(answers, str):
                figures[name] = answers
            elif pick == 0:
                figures[name] = [ms for ms, _ in answers]
            else:
                figures[name] = [memory[pick - 1] for _, memory in answers[-1:]]
        return figures

    names = {DDP: DDP, ALONE: ALONE}
    title = f"PyTorch {model}, {precision}, {WORLD} processes"
    yield Table("bridge", title, "ms per step", [row_of("step", OURS, of(0), names)])
    yield Table("bridge", f"{title}, peak of the larger rank", "MiB",
                [row_of("resident", OURS, of(1), names),
                 row_of("of it shared", OURS, of(2), names)])  # fmt: skip
