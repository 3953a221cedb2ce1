# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks plot RESULT.json ... [--out FOLDER]``: a picture of each table.

Bars are medians, whiskers minimum and maximum; the caption is the head of the run. Several
files are runs of different parts or cases; a row that is in more than one is taken from the last.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.table import OURS, Row, Table, figure, summary

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
COLOURS = ["#1b6ca8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#7d8491", "#b8b8b8"]


def read(paths: list[Path]) -> list[tuple[dict[str, Any], Table]]:
    """Tables of all files, each with the last file's head and the commands of all."""
    found: dict[tuple[str, str], tuple[dict[str, Any], Table]] = {}
    for path in paths:
        values = json.loads(path.read_text())
        for table in map(Table.from_json, values["tables"]):
            key, head = (table.part, table.title), values["head"]
            if key in found:
                rows = {row.case: row for row in found[key][1].rows}
                table.rows = list((rows | {row.case: row for row in table.rows}).values())
                head = {**head, "command": f"{found[key][0]['command']}; {head['command']}"}
            found[key] = head, table
    return list(found.values())


def main(words: list[str]) -> int:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (docs/figures)")
    args = parser.parse_args(words)
    for path in draw_all(read(args.results), args.out):
        print(path)
    return 0


def draw_all(found: list[tuple[dict[str, Any], Table]], folder: Path) -> list[Path]:
    """Draw every table that has samples; the files' paths."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            "[benchmarks] pictures need Matplotlib: pip install 'paceline[plot]'"
        ) from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "paceline"  # the same figures give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a third of the size
    matplotlib.rcParams["font.size"] = 9
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for head, table in found:
        if any(row.ours or row.measured() for row in table.rows):
            drawn.append(folder / file_name(table))
            draw(table, head, drawn[-1])
    return drawn


def file_name(table: Table) -> str:
    """The name of a table's picture."""
    return f"{table.part}-{slug(table.title)}.svg"


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def bars(row: Row) -> dict[str, list[float]]:
    """Samples of a row by who, ours first."""
    return {**({OURS: row.ours} if row.ours else {}), **row.measured()}


def draw(table: Table, head: dict[str, Any], path: Path) -> None:
    """Draw one table: horizontal bars, a group per row."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for row in table.rows for name in bars(row)))
    colour = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    count = sum(len(bars(row)) for row in table.rows)
    figure_, axes = pyplot.subplots(figsize=(7, 1.2 + 0.22 * count + 0.2 * len(table.rows)))
    at, ticks, largest = 0.0, [], 0.0
    for row in table.rows:
        top = at
        for name, values in bars(row).items():
            low, middle, high = summary(values)
            axes.barh(at, middle, 0.85, color=colour[name], xerr=[[middle - low], [high - middle]],
                      error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
            axes.annotate(f"{figure(middle)}  {name}", (high, at), (4, 0), va="center",
                          textcoords="offset points", fontsize=7.5)  # fmt: skip
            at, largest = at + 1, max(largest, high)
        ticks.append(((top + at - 1) / 2, row.case))
        at += 0.8
    axes.set_yticks([y for y, _ in ticks], [case for _, case in ticks])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * largest)
    better = "lower" if table.lower_is_better else "higher"
    axes.set_xlabel(f"{table.unit}, {better} is better")
    axes.set_title(table.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure_.text(0.99, 0.005, f"{head['cpu']}; commit {head['commit']}; {head['rounds']} rounds",
                 ha="right", fontsize=6, color="#666666")  # fmt: skip
    figure_.tight_layout()
    figure_.savefig(path, metadata={"Date": None})
    pyplot.close(figure_)
