# SPDX-License-Identifier: Apache-2.0
"""What a part gives back: rows with our samples and the peers', and how they are shown.

Knows nothing of how anything is measured. A sample is one round's figure; samples of the same
round stand at the same place in every list, so a ratio is taken within one round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

OURS = "paceline"
HEAD = ("case", "who", "median", "min to max", "ratio", "min to max")


@dataclass
class Row:
    """One thing measured by several: `ours` and each peer's samples, or why a peer has none.

    `ours` may be empty: a row that only says what peers or the machine can do.
    """

    case: str
    ours: list[float]
    peers: dict[str, list[float] | str] = field(default_factory=dict)
    note: str = ""

    def measured(self) -> dict[str, list[float]]:
        """Peers that have samples."""
        return {name: v for name, v in self.peers.items() if v and not isinstance(v, str)}


@dataclass
class Table:
    """One table: `unit` of every sample, and whether less or more of it is better."""

    part: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    lower_is_better: bool = True
    note: str = ""

    def ratio(self, row: Row, peer: str) -> list[float]:
        """How many times better ours is, round by round; above 1 is better."""
        theirs = row.peers.get(peer)
        if not row.ours or not theirs or isinstance(theirs, str):
            return []
        pairs = zip(theirs, row.ours, strict=False)
        return [a / b if self.lower_is_better else b / a for a, b in pairs]

    def best(self, row: Row, of: set[str] | None = None) -> str | None:
        """The best peer of a row by its median, among the names `of` if given."""
        medians = {
            name: statistics.median(values)
            for name, values in row.measured().items()
            if of is None or name in of
        }
        if not medians:
            return None
        pick = min if self.lower_is_better else max
        return pick(medians, key=lambda name: medians[name])

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        return {
            "part": self.part,
            "title": self.title,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
            "note": self.note,
            "rows": [vars(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Table:
        """Undo `to_json`."""
        rows = [Row(**row) for row in values["rows"]]
        return cls(**{**values, "rows": rows})


def summary(values: list[float]) -> tuple[float, float, float]:
    """Minimum, median, maximum."""
    return min(values), statistics.median(values), max(values)


def figure(value: float) -> str:
    """A number with three significant digits, four where it is 1000 or more."""
    if value == 0:
        return "0"
    for limit, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3g}"


def lines(table: Table) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line, without the head."""
    for row in table.rows:
        case = row.case
        if row.ours:
            low, middle, high = map(figure, summary(row.ours))
            yield case, OURS, middle, f"{low} to {high}", "", ""
            case = ""
        for name, values in row.peers.items():
            if isinstance(values, str):
                yield case, name, values, "", "", ""
            elif values:
                low, middle, high = map(figure, summary(values))
                ratio = table.ratio(row, name)
                shown = [f"{v:.2f}" for v in summary(ratio)] if ratio else []
                yield (case, name, middle, f"{low} to {high}",
                       f"{shown[1]}x" if shown else "",
                       f"{shown[0]} to {shown[2]}" if shown else "")  # fmt: skip
            case = ""
        if row.note:
            yield "", f"({row.note})", "", "", "", ""


def text(table: Table) -> str:
    """The table for a terminal."""
    better = "lower is better" if table.lower_is_better else "higher is better"
    all_lines = [HEAD, *lines(table)]
    # Remarks are longer than any figure and would push the columns apart.
    plain = [line for line in all_lines if any(line[3:]) or line is HEAD] or [HEAD]
    widths = [max(len(line[k]) for line in plain) for k in range(len(HEAD))]
    widths[0] = max(len(line[0]) for line in all_lines)
    widths[1] = max(len(line[1]) for line in all_lines if not line[1].startswith("("))
    shown = [f"\n{table.title}: {table.unit}, {better}"]
    for line in all_lines:
        cells = [
            cell.ljust(width) if k in (0, 1, 3, 5) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append(("  " + "  ".join(cells)).rstrip())
    if table.note:
        shown.append(f"  {table.note}")
    return "\n".join(shown)


def markdown(table: Table) -> str:
    """The table for a document."""
    better = "lower" if table.lower_is_better else "higher"
    shown = [f"{table.title}; {table.unit}, {better} is better.", "", _bar(HEAD)]
    shown.append(_bar(["---"] * len(HEAD)))
    shown += [_bar(line) for line in lines(table)]
    return "\n".join([*shown, *(["", table.note] if table.note else [])]) + "\n"


def _bar(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
