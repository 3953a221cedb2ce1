# SPDX-License-Identifier: Apache-2.0
"""Training steps: paceline next to its peers, 1 thread, 2 threads, 2 processes, interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Row, Table

STEPS = {"gpt": 3, "gpt-b1": 10, "mlp": 100, "tiny": 2}
TITLES = {
    "gpt": "GPT 10.8 M, batch 8 of 256 tokens",
    "gpt-b1": "GPT 10.8 M, batch 1 of 256 tokens",
    "mlp": "MLP 784-512-512-10, batch 64",
    "tiny": "tiny GPT",
}
# Shown name, worker, library as the worker knows it, what must be installed.
PEERS = [
    ("PyTorch eager", "benchmarks.worker", "torch", "torch"),
    ("PyTorch compiled", "benchmarks.worker", "torch-compile", "torch"),
    ("JAX", "benchmarks.jax_worker", "jax", "jax"),
    ("MLX", "benchmarks.mlx_worker", "mlx", "mlx"),
]
DDP = "PyTorch DDP on Gloo"
ALONE = "paceline, unconnected"


def rows(model: str, precision: str) -> dict[str, Ranks]:
    """Every row of one table; names are library and threads or processes."""

    def worker(module: str, library: str, needs: str, threads: int) -> Ranks:
        args = [library, model, precision, str(threads)]
        return Ranks(module, args, threads=threads, needs=needs)

    def pair(library: str, needs: str, connected: bool) -> Ranks:
        args = [library, model, precision, "1"]
        return Ranks("benchmarks.worker", args, 2, connected, needs=needs)

    result = {}
    for threads in (1, 2):
        result[f"paceline {threads}"] = worker("benchmarks.worker", "paceline", "", threads)
        for shown, module, library, needs in PEERS:
            result[f"{shown} {threads}"] = worker(module, library, needs, threads)
    result["paceline pair"] = pair("paceline", "", True)
    result[ALONE] = pair("paceline", "", False)
    result[DDP] = pair("torch", "torch", True)
    return result


def run(session: Session) -> Iterator[Table]:
    """Yield one table per model and precision: milliseconds of a step of the slowest rank."""
    for model in ("tiny",) if session.quick else session.models:
        for precision in session.precisions:
            what = f"train {model} {precision}"
            with session.running(rows(model, precision), what) as contest:
                took = contest.turns(partial(milliseconds, STEPS[model]))
            title = f"{TITLES[model]}, AdamW, {precision}"
            note = losses(contest.rows)
            yield Table("train", title, "ms per step", rows=cases(took), note=note)


def milliseconds(steps: int, _: str, row: Ranks) -> float:
    """Ask a row for its step."""
    return 1e3 * row.seconds_per_step(steps)


def losses(rows: dict[str, Ranks]) -> str:
    """Say how far first losses lie apart: every row begins with the same weights and batch."""
    first = {name: row.ready[0]["loss"] for name, row in rows.items() if row.ready}
    ours = first["paceline 1"]
    far = [f"{name} {loss:.4f}" for name, loss in first.items() if abs(loss / ours - 1) > 0.005]
    if far:
        return f"First losses differ from ours ({ours:.4f}): {', '.join(far)}"
    apart = max(abs(loss / ours - 1) for loss in first.values())
    return f"First loss {ours:.4f} in every row, within {100 * apart:.3f} %."


def cases(took: dict[str, list[float] | str]) -> list[Row]:
    """The rows of a table; a share of unconnected processes is that row's ratio."""
    result = []
    for threads, case in ((1, "1 thread"), (2, "2 threads")):
        peers = {f"{shown} {threads}": shown for shown, *_ in PEERS}
        result.append(row_of(case, f"paceline {threads}", took, peers))
    peers = {ALONE: ALONE, DDP: DDP}
    result.append(row_of("2 processes", "paceline pair", took, peers))
    return result
