# SPDX-License-Identifier: Apache-2.0
"""PyTorch models trained through paceline, beside Accelerate with DDP on Gloo, interleaved.

Two processes of one thread each, beside two that do not communicate: time of a step; what of it is
communication, which is its time less that of the same step under ``no_sync``, in turns in the same
processes; peak memory of a rank. How long a launch takes is in the part ``startup``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Table

OURS = "paceline, bridge"
DDP = "Accelerate, DDP on Gloo"
ALONE = "PyTorch, unconnected"
# Steps of a turn.
STEPS = {"gpt": 2, "gpt-b1": 8, "gpt2": 1, "mlp": 100, "tiny": 2}
TITLES = {
    "gpt": "GPT 10.8 M, batch 8 of 256 tokens",
    "gpt-b1": "GPT 10.8 M, batch 1 of 256 tokens",
    "gpt2": "GPT-2 124 M, batch 2 of 256 tokens",
    "mlp": "MLP 784-512-512-10, batch 64",
    "tiny": "tiny GPT",
}
WORLD = 2


@dataclass
class Turn:
    """One row's turn: milliseconds of the slower rank, the medians of its steps."""

    step: float
    exposed: float | None  # by the clock; None where nothing is communicated
    exposed_cpu: float | None  # in all threads


def run(session: Session) -> Iterator[Table]:
    """Yield the tables of each model: times in milliseconds, memory in MiB."""
    models = session.models or ("gpt", "gpt-b1", "gpt2", "mlp")
    for model in ("tiny",) if session.quick else models:
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
    with session.running(rows, f"bridge {model} {precision}") as contest:
        took = contest.turns(lambda _, row: turn(row, STEPS[model]))
        ready = {name: row.ready for name, row in rows.items()}
    if isinstance(took[OURS], str):
        session.say(f"bridge: left out, PyTorch is {took[OURS]}")
        return

    def times(part: str) -> dict[str, list[float] | str]:
        return {
            name: turns if isinstance(turns, str) else [getattr(t, part) for t in turns]
            for name, turns in took.items()
        }

    def memory(part: int) -> dict[str, list[float] | str]:
        return {
            name: turns if isinstance(turns, str) else [max(m[part] for m in ready[name])]
            for name, turns in took.items()
        }

    ddp, both = {DDP: DDP}, {DDP: DDP, ALONE: ALONE}
    title = f"PyTorch's {TITLES[model]}, {precision}, {WORLD} processes"
    yield Table("bridge", title, "ms", [
        row_of("step", OURS, times("step"), both),
        row_of("communication it shows", OURS, times("exposed"), ddp),
        row_of("CPU time of that", OURS, times("exposed_cpu"), ddp),
    ], note="Communication: a step less the same under no_sync; a ratio of it below 0 says that "
            "ours was lost in noise.")  # fmt: skip
    yield Table("bridge", f"{title}, peak memory of the larger rank", "MiB", [
        row_of("resident", OURS, memory(0), both),
        row_of("with its share of shared memory", OURS, memory(1), both),
    ])  # fmt: skip


def turn(row: Ranks, steps: int) -> Turn:
    """Ask a row for some steps."""
    answers = row.ask(f"go {steps}")

    def slower(kind: str, of: int) -> list[float]:
        by_rank = [[times[of] for times in answer[kind]] for answer in answers]
        return [max(times) for times in zip(*by_rank, strict=True)]

    def exposed(of: int) -> float | None:
        alone = slower("no_sync", of)
        pairs = zip(slower("step", of), alone, strict=False)
        return statistics.median(a - b for a, b in pairs) if alone else None

    return Turn(statistics.median(slower("step", 0)), exposed(0), exposed(1))
