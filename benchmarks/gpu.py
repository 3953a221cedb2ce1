# SPDX-License-Identifier: Apache-2.0
"""One GPU: GPT-2 124 M trained in bf16 beside PyTorch, kernels beside a measured copy, products.

Without a GPU there is nothing to measure, which one line says.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

BATCH, CONTEXT = 64, 1024
PEAK = 989e12  # of an H100 or H200, dense bf16: what published shares are of
# llm.c's formula, 6 N + 6 L C T, with 124.48 M parameters: operations per token.
PER_TOKEN = 6 * 124.48e6 + 6 * 12 * 768 * 1024
WAYS = {
    "paceline": ("paceline", "own"),
    "PyTorch eager": ("torch", "eager"),
    "PyTorch compiled": ("torch", "compiled"),
    "PyTorch compiled, cuDNN attention": ("torch", "compiled-cudnn"),
}
NO_GPU = (
    "No GPU here: nothing was measured. On a machine with one: PACELINE_CUDA=1 pip install ., "
    "pip install paceline[cuda13], then python -m benchmarks gpu."
)


def run(session: Session) -> Iterator[Table]:
    """Yield tokens per second, memory, bandwidth and products; or that there is no GPU."""
    import paceline

    if not paceline.cuda.is_available():
        yield Table("gpu", "One GPU", "thousand tokens/s", lower_is_better=False, note=NO_GPU)
        return
    name = paceline.cuda.get_device_name(0)
    yield from training(session, name)
    yield from kernels(session, name)


def training(session: Session, name: str) -> Iterator[Table]:
    """Row by row, since four of them would not fit into one GPU's memory together."""
    size, batch = ("tiny", 2) if session.quick else ("gpt2", BATCH)
    tokens = batch * (8 if session.quick else CONTEXT)
    took: dict[str, list[float] | str] = {}
    memory: dict[str, list[float] | str] = {}
    losses: list[str] = []
    for shown, (library, way) in WAYS.items():
        row = _ranks(session, "benchmarks.gpu_worker", [library, way, size, str(batch)])
        with session.running({shown: row}, f"gpu, GPT-2, {shown}") as contest:
            steps = 1 if session.quick else max(1, min(50, round(5 / _ready(row, "step", 5.0))))
            answers = contest.turns(lambda _, r, n=steps: tokens / 1e3 / r.ask(f"go {n}")[0])[shown]
            took[shown] = memory[shown] = answers
            if not isinstance(answers, str):
                memory[shown] = [_ready(row, "peak", 0.0)]
                losses.append(f"{shown} {_ready(row, 'loss', 0.0):.4f}")
    title = "tiny GPT" if session.quick else f"GPT-2 124 M, {batch} sequences of {CONTEXT} tokens"
    table = Table("gpu", f"{name}: {title}, AdamW, bf16", "thousand tokens/s",
                  lower_is_better=False)  # fmt: skip
    table.rows.append(_row("training step", took))
    table.note = f"First losses: {', '.join(losses)}."
    if not session.quick:
        table.note = f"{shares(took)} {table.note}"
    yield table
    yield Table("gpu", f"{name}: most memory in use by tensors, same step", "MiB",
                [_row("training step", memory)])  # fmt: skip


@functools.cache
def _blind(python: str) -> str:
    """Why this interpreter's PyTorch, if it has one, cannot take part."""
    ask = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([python, "-c", ask], capture_output=True, timeout=120)
    return "sees no GPU" if done.returncode else ""


def _ranks(session: Session, module: str, args: list[str]) -> Ranks:
    """One process on the GPU; its library is the first of the arguments."""
    row = Ranks(module, args, threads=2, pin=False)
    if args[0] == "torch":
        row.needs = "torch"
        row.absent = _blind(session.peers.python("torch")) if session.peers.has("torch") else ""
    return row


def _ready(row: Ranks, key: str, otherwise: float) -> float:
    return float(row.ready[0][key]) if row.ready else otherwise


def _row(case: str, found: dict[str, Any]) -> Row:
    peers = {name: values for name, values in found.items() if name != "paceline"}
    return Row(case, found["paceline"], peers)


def shares(took: dict[str, list[float] | str]) -> str:
    """Say the share of the peak that every row reaches."""
    said = [
        f"{name} {100 * statistics.median(values) * 1e3 * PER_TOKEN / PEAK:.1f} %"
        for name, values in took.items()
        if values and not isinstance(values, str)
    ]
    return f"Share of {PEAK / 1e12:.0f} TFLOP/s by llm.c's formula: {', '.join(said)}."


def kernels(session: Session, name: str) -> Iterator[Table]:
    """Bandwidth of the kernels that memory bounds, beside the copy's; products in TFLOP/s."""
    size = "tiny" if session.quick else "gpt2"
    rows = {
        "paceline": _ranks(session, "benchmarks.gpu_kernels_worker", ["paceline", size]),
        "PyTorch": _ranks(session, "benchmarks.gpu_kernels_worker", ["torch", size]),
    }
    bounded = Table("gpu", f"{name}: kernels, bf16", "GB/s", lower_is_better=False)
    bounded.note = "Bytes that the definition must read and write. The goal is 90 % of the copy."
    made = Table("gpu", f"{name}: matrix products, bf16", "TFLOP/s", lower_is_better=False)
    with session.running(rows, "gpu, kernels") as contest:
        *moving, multiplying = rows["paceline"].ready[0]["names"]
        copies: list[float] = []
        for label in [label for names in moving for label in names]:
            row = _row(label, _asked(contest, label, 1e9))
            if label == "copy":
                copies = row.ours
            else:
                row.peers["a copy"] = copies[: len(row.ours)]
            bounded.rows.append(row)
            if session.interrupted:
                break
        for label in () if session.interrupted else multiplying:
            made.rows.append(_row(label, _asked(contest, label, 1e12)))
    yield bounded
    if made.rows:
        yield made


def _asked(contest: Any, label: str, unit: float) -> dict[str, Any]:
    found: dict[str, Any] = contest.turns(lambda _, row: row.ask(f"go {label}")[0] / unit)
    return found
