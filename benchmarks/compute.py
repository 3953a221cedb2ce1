# SPDX-License-Identifier: Apache-2.0
"""How much of the processor a step uses: against oneDNN's own rate, against itself in bf16, and
attention and a small model against PyTorch and Accelerate."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Row, Table

# The GPT of models.py: its layers, heads, width, context, vocabulary, and tokens of a step.
LAYERS, WIDTH, CONTEXT, VOCAB, TOKENS = 6, 384, 256, 256, 8 * 256
HEADS, HEAD = 6, 64
CUBE = (1024, 1024, 1024)
LARGEST = (TOKENS, WIDTH, 4 * WIDTH)  # of the model's products, as (m, k, n)
STEPS = {"step": 3, "cube": 30, "largest": 30}
PASSES = 20  # of attention in a turn
MLP_STEPS = 100


def step_flops() -> float:
    """Operations of one training step: what the model asks for, whoever computes it.

    A weight takes part in one product forward and two backward; so do the two products of
    attention, of which a causal mask leaves half.
    """
    weights = LAYERS * 12 * WIDTH * WIDTH + VOCAB * WIDTH
    attention = LAYERS * 2 * CONTEXT * WIDTH / 2
    return 3 * 2 * TOKENS * (weights + attention)


def pass_flops(batch: int) -> float:
    """Operations of attention forward and backward: two products and five, half of each."""
    return 7 * 2 * batch * HEADS * CONTEXT * CONTEXT * HEAD / 2


def product_flops(m: int, k: int, n: int) -> float:
    """Operations of one product."""
    return 2.0 * m * k * n


def run(session: Session) -> Iterator[Table]:
    """Yield the tables; in a quick run of the least that still computes."""
    yield from whole_step(session)
    yield attention(session)
    if not session.quick:
        yield small_model(session)


def products(model: str, precision: str, threads: int) -> dict[str, Ranks]:
    """Rows of one precision and number of threads."""
    tail = f"{precision} {threads}"
    args = ["paceline", model, precision, str(threads)]
    rows = {f"paceline step {tail}": Ranks("benchmarks.worker", args, threads=threads)}
    for name, sizes in (("cube", CUBE), ("largest", LARGEST)):
        args = [precision, *map(str, sizes)]
        rows[f"{name} {tail}"] = Ranks("benchmarks.packed_worker", args, threads=threads)
    return rows


def whole_step(session: Session) -> Iterator[Table]:
    """Yield GFLOP/s of a GPT step beside packed products, and fp32 beside bf16."""
    rows: dict[str, Ranks] = {}
    cases = [(p, t) for t in (1, 2) for p in session.precisions]
    for precision, threads in cases[:1] if session.quick else cases:
        rows |= products("tiny" if session.quick else "gpt", precision, threads)
    with session.running(rows, "compute: step") as contest:
        took = contest.turns(seconds)
    rates = Table("compute", "GPT 10.8 M, whole step against oneDNN's packed products", "GFLOP/s",
                  lower_is_better=False)  # fmt: skip
    rates.note = "ratio: the share of the product's rate that the step reaches"
    times = Table("compute", "GPT 10.8 M, bf16 against fp32", "ms per step")
    for threads in (1, 2):
        text = "1 thread" if threads == 1 else f"{threads} threads"
        for precision in session.precisions:
            rates.rows += share(f"{precision}, {text}", took, f"{precision} {threads}")
        peers = {f"paceline step fp32 {threads}": "paceline, fp32"}
        if f"paceline step bf16 {threads}" in took and len(session.precisions) == 2:
            row = row_of(text, f"paceline step bf16 {threads}", took, peers)
            times.rows.append(in_ms(row))
    yield rates
    if times.rows:
        yield times


def seconds(name: str, row: Ranks) -> float:
    """Ask a row of `products` for its median."""
    kind = "step" if name.startswith("paceline") else name.split()[0]
    return row.seconds_per_step(STEPS[kind])


def share(case: str, took: dict[str, list[float] | str], tail: str) -> list[Row]:
    """The row of one precision and number of threads, if it was measured."""
    ours = took.get(f"paceline step {tail}")
    if not isinstance(ours, list):
        return []
    peers: dict[str, list[float] | str] = {}
    shown = {"cube": "packed, 1024 cubed", "largest": "packed, its largest product"}
    for (name, text), sizes in zip(shown.items(), (CUBE, LARGEST), strict=True):
        values = took[f"{name} {tail}"]
        flops = product_flops(*sizes)
        peers[text] = [flops / s / 1e9 for s in values] if isinstance(values, list) else values
    return [Row(case, [step_flops() / s / 1e9 for s in ours], peers)]


def in_ms(row: Row) -> Row:
    """Seconds as milliseconds."""
    peers = {k: v if isinstance(v, str) else [1e3 * s for s in v] for k, v in row.peers.items()}
    return Row(row.case, [1e3 * s for s in row.ours], peers, row.note)


def attention(session: Session) -> Table:
    """Milliseconds of both passes, T 256, heads of 64, one thread."""
    batch = 1 if session.quick else 8
    rows, peers = {}, {}
    for precision in session.precisions:
        for library in ("paceline", "torch"):
            args = [library, precision, "1", *map(str, (batch, HEADS, CONTEXT, HEAD))]
            name = f"{library} {precision}"
            needs = "" if library == "paceline" else library
            rows[name] = Ranks("benchmarks.attention_worker", args, needs=needs)
        peers[precision] = {f"torch {precision}": "PyTorch"}
    with session.running(rows, "compute: attention") as contest:
        took = contest.turns(lambda _, row: row.seconds_per_step(PASSES))
    title = "Causal attention, forward and backward, T 256, heads of 64, 1 thread"
    table = Table("compute", title, "ms")
    for precision in session.precisions:
        row = row_of(precision, f"paceline {precision}", took, peers[precision])
        rate = pass_flops(batch) / statistics.median(row.ours) / 1e9 if row.ours else 0.0
        row.note = f"{rate:.0f} GFLOP/s"
        table.rows.append(in_ms(row))
    return table


def small_model(session: Session) -> Table:
    """Milliseconds of an MLP's step through an Accelerator, ours and theirs, one thread."""
    rows = {}
    libraries = {"paceline": "", "accelerate": "accelerate", "torch": "torch"}
    for precision in session.precisions:
        for library, needs in libraries.items():
            args = [library, "mlp", precision, "1"]
            rows[f"{library} {precision}"] = Ranks("benchmarks.worker", args, needs=needs)
    with session.running(rows, "compute: MLP") as contest:
        took = contest.turns(lambda _, row: row.seconds_per_step(MLP_STEPS))
    table = Table("compute", "MLP 784-512-512-10, batch 64, AdamW, 1 thread", "ms per step")
    for precision in session.precisions:
        peers = {f"accelerate {precision}": "Accelerate", f"torch {precision}": "PyTorch"}
        table.rows.append(in_ms(row_of(precision, f"paceline {precision}", took, peers)))
    return table
