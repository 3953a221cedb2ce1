# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step: peak resident memory beside PyTorch's, and our allocator's own count.

Every process is new and trains one model for eight steps. The peak is the kernel's (VmHWM), all
that the process ever had resident, its interpreter and libraries included. What a forward pass
leaves for the backward pass is counted by the allocator; it includes the logits and, in bf16, the
weights in that precision, which go as the backward pass goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

STEPS = 5
MODELS = {"gpt": "GPT 10.8 M", "gpt2": "GPT-2 124 M", "tiny": "tiny GPT"}
PEER = "PyTorch eager"
MOST = "most in use"


def run(session: Session) -> Iterator[Table]:
    """Yield the peaks by model and precision, then what the allocator counted."""
    peaks = Table("memory", "Peak resident memory, AdamW, one process, two threads", "MiB")
    own = Table("memory", "Our allocator: held from the system, beside the most in use", "MiB")
    left = Table("memory", "What our forward pass leaves for the backward pass", "MiB")
    faults: list[str] = []
    for model in ("tiny",) if session.quick else ("gpt", "gpt2"):
        forward: dict[str, list[float]] = {}
        for precision in session.precisions:
            case = f"{MODELS[model]}, {precision}"
            used = measured(session, model, precision)
            ours, theirs = used["paceline"], used[PEER]
            peer = theirs if isinstance(theirs, str) else [use["peak"] for use in theirs]
            peaks.rows.append(Row(case, [use["peak"] for use in ours], {PEER: peer}))
            own.rows.append(Row(case, [use["held"] for use in ours],
                                {MOST: [use["most in use"] for use in ours]}))  # fmt: skip
            forward[precision] = [use["forward"] for use in ours]
            for name, uses in used.items():
                if uses and not isinstance(uses, str):
                    faults.append(f"{name} {case}: {max(use['faults'] for use in uses):.0f}")
        low = forward.get("bf16", [])
        left.rows.append(Row(MODELS[model], low or forward["fp32"],
                             {"fp32": forward["fp32"]} if low and "fp32" in forward else {},
                             note="bf16" if low else "fp32"))  # fmt: skip
    peaks.note = f"Page faults of a step after the first three: {'; '.join(faults)}."
    yield from (peaks, own, left)


def measured(session: Session, model: str, precision: str) -> dict[str, Any]:
    """Eight steps in a new process each, ours and the peer's in turn."""
    found: dict[str, Any] = {"paceline": [], PEER: []}
    for k in range(session.rounds):
        args = [model, precision]
        rows = {
            "paceline": Ranks("benchmarks.memory_worker", ["paceline", *args], threads=2),
            PEER: Ranks("benchmarks.memory_worker", ["torch", *args], threads=2, needs="torch"),
        }
        what = f"memory {model} {precision}, process {k + 1} of {session.rounds}"
        for name, row in rows.items():
            with session.running({name: row}, what) as contest:
                answers = contest.failed.get(name) or row.ask(f"use {STEPS}")
            if isinstance(answers, str):
                found[name] = answers
            elif not isinstance(found[name], str):
                found[name] += answers
    return found
