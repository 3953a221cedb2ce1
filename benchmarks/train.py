# SPDX-License-Identifier: Apache-2.0
"""Training steps: paceline next to its peers, 1 thread, 2 threads, 2 processes, interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Row, Table

STEPS = {"gpt": 3, "gpt-b1": 10, "gpt2": 1, "mlp": 100, "tiny": 2}
TITLES = {
    "gpt": "GPT 10.8 M, batch 8 of 256 tokens",
    "gpt-b1": "GPT 10.8 M, batch 1 of 256 tokens",
    "gpt2": "GPT-2 124 M, batch 2 of 256 tokens",
    "mlp": "MLP 784-512-512-10, batch 64",
    "tiny": "tiny GPT",
}
# Shown name, worker, library as the worker knows it, what must be installed.
OURS = ("paceline", "benchmarks.worker", "paceline", "")
PEERS = [
    ("PyTorch eager", "benchmarks.worker", "torch", "torch"),
    ("PyTorch compiled", "benchmarks.worker", "torch-compile", "torch"),
    ("JAX", "benchmarks.jax_worker", "jax", "jax"),
    ("MLX", "benchmarks.mlx_worker", "mlx", "mlx"),
]
DDP = "PyTorch DDP on Gloo"
ALONE = "paceline, unconnected"


def rows(case: str, model: str, precision: str) -> tuple[dict[str, Ranks], dict[str, str]]:
    """The rows of one case, ours first, and the peers' names; libraries as benchmarks.worker's."""
    if case == "2-processes":
        pair = ["paceline", model, precision, "1"]
        found = {
            "paceline": Ranks("benchmarks.worker", pair, 2),
            ALONE: Ranks("benchmarks.worker", pair, 2, connected=False),
            DDP: Ranks("benchmarks.worker", ["torch", *pair[1:]], 2, needs="torch"),
        }
    else:
        threads = int(case[0])
        found = {
            shown: Ranks(module, [library, model, precision, str(threads)], threads=threads,
                         needs=needs)
            for shown, module, library, needs in [OURS, *PEERS]
        }  # fmt: skip
    return found, {name: name for name in found if name != "paceline"}


def run(session: Session) -> Iterator[Table]:
    """Yield one table per model and precision: milliseconds of a step of the slowest rank."""
    wanted = [model for model in session.models or ("gpt", "mlp") if model in STEPS]
    for model in ("tiny",) if session.quick else wanted:
        for precision in session.precisions:
            table = Table("train", f"{TITLES[model]}, AdamW, {precision}", "ms per step")
            first: dict[str, float] = {}
            for case in session.cases:
                if not session.interrupted:
                    table.rows.append(measured(session, case, model, precision, first))
            if not table.rows:
                return
            table.note = losses(first)
            yield table


def measured(
    session: Session, case: str, model: str, precision: str, first: dict[str, float]
) -> Row:
    """Time one case; its first losses go into `first`."""
    found, peers = rows(case, model, precision)
    with session.running(found, f"train {model} {precision} {case}") as contest:
        took = contest.turns(partial(milliseconds, STEPS[model]))
        for name, row in found.items():
            if row.ready:
                first[f"{name}, {case}"] = row.ready[0]["loss"]
    return row_of(case.replace("-", " "), "paceline", took, peers)


def milliseconds(steps: int, _: str, row: Ranks) -> float:
    """Ask a row for its step: the median of as many as take two seconds."""
    taken = max(ready["seconds"] for ready in row.ready)
    return 1e3 * row.seconds_per_step(max(1, min(steps, round(2 / taken))))


def losses(first: dict[str, float]) -> str:
    """Say how far first losses lie apart: every row begins with the same weights and batch."""
    ours = next(loss for name, loss in first.items() if name.startswith("paceline"))
    far = [f"{name}: {loss:.4f}" for name, loss in first.items() if abs(loss / ours - 1) > 0.005]
    if far:
        return f"First losses differ from ours ({ours:.4f}): {'; '.join(far)}."
    apart = max(abs(loss / ours - 1) for loss in first.values())
    return f"First loss {ours:.4f} in every row, within {100 * apart:.3f} %."
