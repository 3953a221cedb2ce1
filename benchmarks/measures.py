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

from benchmarks.plot import read
from benchmarks.table import Row, Table, figure, markdown, summary

PEERS = ("PyTorch eager", "PyTorch compiled", "JAX", "MLX")
GPT, MLP = "^GPT 10.8 M, batch 8.*", "^MLP .*"


@dataclass(frozen=True)
class Measure:
    """`title` and `case` are regular expressions; `peers` empty: the figure is ours itself.

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
    for precision, target in (("fp32", 3.0), ("bf16", 2.5)):
        yield Measure(f"MLP, {precision}, 1 thread", target, MLP + precision, "1 thread", PEERS)
    alone = ("paceline, unconnected",)
    for name, title, target in (("GPT 10.8 M", GPT, 0.98), ("MLP", MLP, 0.85)):
        for precision in ("fp32", "bf16"):
            yield Measure(f"{name}, {precision}, 2 processes, share of unconnected", target,
                          title + precision, "2 processes", alone)  # fmt: skip


MEASURES = [
    *_training(),
    Measure("import, ms over a bare interpreter", 50, "^Import", "import", at_most=True),
    Measure("launch of two processes, s", 0.5, "^Launch", "native", at_most=True),
]


def rows_of(tables: list[Table], title: str, case: str) -> Iterator[tuple[Table, Row]]:
    """Yield the rows that two patterns name."""
    for table in tables:
        for row in table.rows:
            if re.search(title, table.title) and re.fullmatch(case, row.case) and row.ours:
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
    bound = f"at most {measure.target:g}" if measure.at_most else f"{measure.target:g}"
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
    _, tables = read(args.results)
    print("| measure | target | median (min to max) | against | met |")
    print("| --- | --- | --- | --- | --- |")
    for measure in MEASURES:
        print(line(measure, tables))
    for table in tables if args.tables else []:
        print(f"\n{markdown(table)}", end="")
    return 0
