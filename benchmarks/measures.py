# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks measures RESULT.json ... [--tables]``: what was aimed at, what is reached.

A measure names rows of tables: its figure is ours against the best of the named peers in the same
run, or ours itself, or ours against ours in another table. Prints a table for docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import WAYS
from benchmarks.plot import read
from benchmarks.table import Row, Table, figure, markdown, summary

PEERS = ("PyTorch eager", "PyTorch compiled", "JAX", "MLX")
MPI = ("Open MPI", "MPICH", "Intel MPI")
ALONE = ("paceline, unconnected",)
HEAD_LINES = (
    "| measure | target | median (min to max) | against | met |",
    "| --- | --- | --- | --- | --- |",
)
GPT, GPT2, MLP = "^train: GPT 10.8 M, batch 8.*", "^train: GPT-2 124 M.*", "^train: MLP .*"


@dataclass(frozen=True)
class Measure:
    """`title` ("part: title") and `case` are patterns; `peers` empty: the figure is ours itself.

    `over` is the title of another table whose row of the same case ours is divided by.
    """

    name: str
    target: float
    title: str
    case: str
    peers: tuple[str, ...] = ()
    over: str = ""
    at_most: bool = False


def _training() -> Iterator[Measure]:
    for precision, one, two in (("fp32", 2.3, 2.1), ("bf16", 1.45, 1.45)):
        title = GPT + precision
        yield Measure(f"GPT 10.8 M, {precision}, 1 thread", one, title, "1 thread", PEERS)
        yield Measure(f"GPT 10.8 M, {precision}, 2 threads", two, title, "2 threads", PEERS)
    for case in ("1 thread", "2 threads"):
        yield Measure(f"GPT 10.8 M, bf16 over fp32, {case}", 1.8, GPT + "bf16", case,
                      over=GPT + "fp32")  # fmt: skip
    yield Measure("GPT-2 124 M, bf16, 2 threads", 1.6, GPT2 + "bf16", "2 threads", PEERS)
    shares = (("GPT 10.8 M", GPT, 0.98), ("GPT-2 124 M", GPT2, 0.95), ("MLP", MLP, 0.85))
    for name, title, target in shares:
        for precision in ("fp32", "bf16"):
            yield Measure(f"{name}, {precision}, 2 processes, share of unconnected", target,
                          title + precision, "2 processes", ALONE)  # fmt: skip


def _communication() -> Iterator[Measure]:
    for precision in ("fp32", "bf16"):
        yield Measure(f"exposed communication, GPT, batch 1, {precision}, %", 3,
                      f"^exposed: GPT 10.8 M, batch 1.*{precision}", "exposed, % of the step",
                      at_most=True)  # fmt: skip
    title, bucket = "^allreduce: All-reduce, fp32, 2 ranks", "bucket, in place"
    large, small = f"64 MiB, {bucket}", f"1 MiB, {bucket}"
    yield Measure("64 MiB bucket, of the limit", 0.75, title, large, ("limit, in place",))
    yield Measure("64 MiB bucket, against Gloo", 5, title, large, ("Gloo",))
    yield Measure("64 MiB bucket, against the best MPI", 4, title, large, MPI)
    yield Measure("64 MiB ordinary buffer, of the limit", 0.75, title, "64 MiB, ordinary buffer",
                  ("limit, staged",))  # fmt: skip
    yield Measure("1 MiB bucket, of the limit", 0.6, title, small, ("limit, in place",))
    yield Measure("1 MiB bucket, against the best MPI", 1, title, small, MPI)
    words = "^allreduce: All-reduce, 4 bytes, "
    yield Measure("4 bytes, 2 ranks, C call, us", 0.5, words + "2", "C call", at_most=True)
    yield Measure("4 bytes, 2 ranks, Python, us", 2, words + "2", "from Python", at_most=True)
    yield Measure("4 bytes, 4 ranks, Python, us", 8, words + "4", "from Python", at_most=True)
    loop = ("limit, loop with the same traffic",)
    yield Measure("AdamW, 124 M, of a loop's rate", 0.95, "^adamw: ", "2 threads, step", loop)
    yield Measure("AdamW, unscale and clip, of a loop's rate", 1 / 1.15, "^adamw: ",
                  "2 threads, unscale_.*", loop)  # fmt: skip


def _memory_and_files() -> Iterator[Measure]:
    peaks = "^memory: Peak"
    for name, target in (("GPT 10.8 M", 2.0), ("GPT-2 124 M", 1 / 0.85)):
        for precision in ("fp32", "bf16"):
            yield Measure(f"{name}, {precision}, peak memory, times less", target, peaks,
                          f"{name}, {precision}", ("PyTorch eager",))  # fmt: skip
    yield Measure("activations in bf16, times less than fp32", 1 / 0.55,
                  "^memory: What our forward", "GPT 10.8 M", ("fp32",))  # fmt: skip
    for order, target, floor in (("in order", 10, "slice copy"), ("shuffled", 8, "gather")):
        title = f"^loader: DataLoader, 1 M rows.*, {order}$"
        yield Measure(f"loader, {order}", target, title, "no workers", ("PyTorch",))
        yield Measure(f"loader, {order}, of NumPy's {floor}", 0.7, title, "no workers",
                      (f"NumPy {floor}",))  # fmt: skip
    yield Measure("save 1.5 GB, of a raw write", 0.9, "^checkpoint: ", "save", ("raw",))
    yield Measure("load 1.5 GB, of a raw read", 0.8, "^checkpoint: ", "load",
                  ("raw, into used memory",))  # fmt: skip
    yield Measure("import, ms over a bare interpreter", 50, "^startup: Import", "import",
                  at_most=True)  # fmt: skip
    yield Measure("launch of two processes, s", 0.5, "^startup: Launch", "native", at_most=True)


def _computing() -> Iterator[Measure]:
    step, rates = "^compute: GPT .*packed products", ("packed, 1024 cubed",)
    for precision, target in (("fp32", 0.85), ("bf16", 0.75)):
        for case in ("1 thread", "2 threads"):
            yield Measure(f"GPT step, {precision}, {case}, share of oneDNN's packed rate", target,
                          step, f"{precision}, {case}", rates)  # fmt: skip
    yield Measure("attention, bf16, 1 thread", 4, "^compute: Causal", "bf16", ("PyTorch",))
    for precision, target in (("fp32", 3.0), ("bf16", 2.5)):
        yield Measure(f"MLP through an Accelerator, {precision}, 1 thread", target,
                      "^compute: MLP", precision, ("Accelerate",))  # fmt: skip
    for call in ("x + y", "x + 1.0", "x @ y", "linear"):
        yield Measure(f"{call} with its node, us", 0.6, "^overhead: Fixed costs", re.escape(call),
                      at_most=True)  # fmt: skip


def _bridge() -> Iterator[Measure]:
    ddp = ("Accelerate, DDP on Gloo",)
    for name, share in (("GPT 10.8 M, batch 8", 0.98), ("GPT 10.8 M, batch 1", 0.98),
                        ("GPT-2 124 M", 0.95), ("MLP", 0.85)):  # fmt: skip
        title, bridge = f"^bridge: PyTorch's {name}.*processes", f"bridge, {name}"
        yield Measure(f"{bridge}, share of unconnected", share, f"{title}$", "step",
                      ("PyTorch, unconnected",))  # fmt: skip
        yield Measure(f"{bridge}, step against DDP", 1.0, f"{title}$", "step", ddp)
        yield Measure(f"{bridge}, memory of a rank against DDP", 1.0, f"{title}, peak",
                      "resident", ddp)  # fmt: skip
    yield Measure("bridge, launch of two processes", 1.0, "^startup: Launch",
                  "with PyTorch's model", ("accelerate launch",))  # fmt: skip


def _gpu() -> Iterator[Measure]:
    step = "^gpu: (?!Virtual).*GPT-2 124 M.*AdamW, bf16"
    yield Measure("GPT-2 124 M, bf16, one H200, thousand tokens/s", 600,
                  step.replace("(?!Virtual).*", ".*H200: "), "training step")  # fmt: skip
    yield Measure("GPT-2 124 M, bf16, one GPU, against the best PyTorch", 1.1, step,
                  "training step", tuple(name for name in WAYS if name != "paceline"))  # fmt: skip
    for kernel in ("add", "layer_norm", "gelu (tanh)", "cross_entropy", "AdamW, fp32"):
        yield Measure(f"{kernel} on a GPU, of a copy's rate", 0.9, "^gpu: (?!Virtual).*kernels",
                      re.escape(kernel), ("a copy",))  # fmt: skip


MEASURES = [
    *_training(),
    *_computing(),
    *_communication(),
    *_bridge(),
    *_memory_and_files(),
    *_gpu(),
]


def rows_of(tables: list[Table], title: str, case: str) -> Iterator[tuple[Table, Row]]:
    """Yield the rows that two patterns name."""
    for table in tables:
        for row in table.rows:
            if (
                re.search(title, f"{table.part}: {table.title}")
                and re.fullmatch(case, row.case)
                and row.ours
            ):
                yield table, row


def samples(measure: Measure, tables: list[Table]) -> tuple[list[float], str] | None:
    """The figures of a measure, and against whom; None where it was not measured."""
    for table, row in rows_of(tables, measure.title, measure.case):
        if measure.over:
            for _, other in rows_of(tables, measure.over, measure.case):
                pairs = zip(other.ours, row.ours, strict=False)
                return [a / b for a, b in pairs], "ours"
            return None
        if not measure.peers:
            return row.ours, ""
        best = table.best(row, set(measure.peers))
        if best is None:
            return None
        return table.ratio(row, best), best
    return None


def line(measure: Measure, tables: list[Table]) -> str:
    """One line of the table."""
    bound = f"at most {measure.target:g}" if measure.at_most else f"{measure.target:.3g}"
    found = samples(measure, tables)
    if found is None:
        return f"| {measure.name} | {bound} | not measured | | |"
    values, whom = found
    low, middle, high = summary(values)
    met = middle <= measure.target if measure.at_most else middle >= measure.target
    shown = f"{figure(middle)} ({figure(low)} to {figure(high)})"
    return f"| {measure.name} | {bound} | {shown} | {whom} | {'yes' if met else 'no'} |"


def main(words: list[str]) -> int:
    """Print the table of the files that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks measures", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--tables", action="store_true", help="also every table, in Markdown")
    args = parser.parse_args(words)
    tables = [table for _, table in read(args.results)]
    print("\n".join([*HEAD_LINES, *(line(measure, tables) for measure in MEASURES)]))
    for table in tables if args.tables else []:
        print(f"\n{markdown(table)}", end="")
    return 0
