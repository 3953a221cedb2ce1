# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks document RESULT.json ...``: puts figures into the documents.

A document marks where they go: ``<!-- measures -->`` and ``<!-- tables PART -->``, each up to
``<!-- end -->``. What the files do not hold stays as it was, so parts can be measured one by one.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks.measures import HEAD_LINES, MEASURES, line
from benchmarks.plot import FOLDER, draw_all, file_name, read
from benchmarks.table import Table, markdown

DOCUMENTS = [FOLDER.parent / name for name in ("performance.md", "scaling.md")]
PICTURED = {"train", "allreduce", "memory", "scaling"}
BLOCK = re.compile(r"(<!-- (measures|tables (\w+)) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def source(head: dict[str, Any]) -> str:
    """Where figures come from, in one line."""
    versions = ", ".join(f"{name} {v}" for name, v in head["versions"].items() if v != "unknown")
    load = f"load {head['load_at_start'][0]:.1f} at the start"
    return (
        f"`python -m benchmarks {head['command']}`, commit {head['commit']}, "
        f"{head['rounds']} rounds, {head['date']}, {load}; {versions}."
    )


def measures(before: str, tables: list[Table]) -> str:
    """Every measure; the line from before where it is not in the tables."""
    old = {text.split("|")[1].strip(): text for text in before.splitlines() if "|" in text}
    lines = [*HEAD_LINES]
    for measure in MEASURES:
        new = line(measure, tables)
        lines.append(old.get(measure.name, new) if "not measured" in new else new)
    return "\n".join(lines) + "\n"


def figures(part: str, found: list[tuple[dict[str, Any], Table]]) -> str:
    """The tables of a part, with their sources and pictures; empty if there are none."""
    text, last = "", ""
    for head, table in found:
        if table.part == part:
            new = source(head)
            text += f"{new}\n\n" if new != last else ""
            last = new
            text += f"{markdown(table)}\n"
            if part in PICTURED:
                text += f"![{table.title}](figures/{file_name(table)})\n\n"
    return text


def updated(text: str, found: list[tuple[dict[str, Any], Table]]) -> str:
    """A document's text with the figures in their places."""

    def replaced(match: re.Match[str]) -> str:
        begin, kind, part, before, end = match.groups()
        if kind == "measures":
            new = measures(before, [table for _, table in found])
        else:
            new = figures(part, found) or before
        return f"{begin}{new}{end}"

    return BLOCK.sub(replaced, text)


def main(words: list[str]) -> int:
    """Update the documents from the files that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks document", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--documents", nargs="+", type=Path, default=DOCUMENTS)
    parser.add_argument("--out", type=Path, default=FOLDER, help="of pictures (docs/figures)")
    args = parser.parse_args(words)
    found = read(args.results)
    for path in args.documents:
        text = path.read_text()
        path.write_text(updated(text, found))
    draw_all([(head, table) for head, table in found if table.part in PICTURED], args.out)
    return 0
