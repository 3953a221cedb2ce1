# SPDX-License-Identifier: Apache-2.0
"""The two tables of a profile: where each rank's time went, and which operators took it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .record import Breakdown, Record, self_times

__all__ = ["Average", "Averages", "averages", "breakdown_table"]


def _milliseconds(ns: float) -> str:
    return f"{ns / 1e6:.1f} ms" if ns >= 1e6 else f"{ns / 1e3:.1f} us"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay cells out in columns: the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def breakdown_table(ranks: Mapping[int, Breakdown], lost: int = 0) -> str:
    """Tell where the time of each rank went.

    Parameters
    ----------
    ranks : mapping
        From rank to its breakdown.
    lost : int
        Events that there was no room for; said below the table.
    """
    head = (
        "rank wall forward backward optimizer data exposed other".split()
        + ["communication", "of it hidden"]
    )  # fmt: skip
    head[5], head[6] = "waiting for data", "exposed comm."
    rows = []
    for rank, b in sorted(ranks.items()):
        parts = (b.forward, b.backward, b.optimizer, b.data, b.exposed, b.other)
        rows.append(
            [str(rank), _milliseconds(b.wall)]
            + [f"{_milliseconds(part)} {100 * part / max(b.wall, 1):3.0f} %" for part in parts]
            + [_milliseconds(b.communication), f"{100 * b.hidden:.0f} %"]
        )
    lines = _lines(head, rows)
    steps = max((b.steps for b in ranks.values()), default=0)
    if steps:
        longest = max(b.wall for b in ranks.values())
        lines.append(f"{steps} steps, {_milliseconds(longest / steps)} each")
    if lost:
        lines.append(f"{lost} events came after the log was full and are missing above")
    return "\n".join(lines)


@dataclass
class Average:
    """One name in a profile; times in microseconds, over all its events."""

    key: str
    kind: str
    count: int = 0
    cpu_time_total: float = 0.0
    self_cpu_time_total: float = 0.0

    @property
    def cpu_time(self) -> float:
        """Mean time of one event."""
        return self.cpu_time_total / self.count


class Averages(list[Average]):
    """The names of a profile; what ``key_averages`` gives."""

    _SORTS = ("cpu_time_total", "self_cpu_time_total", "cpu_time", "count")

    def table(self, sort_by: str | None = None, row_limit: int = 100) -> str:
        """Lay it out as text.

        Parameters
        ----------
        sort_by : str, optional
            ``"self_cpu_time_total"`` (the default), ``"cpu_time_total"``, ``"cpu_time"`` or
            ``"count"``; largest first.
        row_limit : int
            At most so many rows; below 0 all.

        Raises
        ------
        ValueError
            For another ``sort_by``.
        """
        key = "self_cpu_time_total" if sort_by is None else sort_by
        if key not in self._SORTS:
            raise ValueError(
                f"[table] cannot sort by {sort_by!r}: expected one of {list(self._SORTS)}"
            )
        whole = sum(one.self_cpu_time_total for one in self)
        chosen = sorted(self, key=lambda one: float(getattr(one, key)), reverse=True)
        rows = [
            (
                one.key,
                one.kind,
                f"{100 * one.self_cpu_time_total / max(whole, 1e-9):.1f} %",
                _milliseconds(one.self_cpu_time_total * 1e3),
                _milliseconds(one.cpu_time_total * 1e3),
                _milliseconds(one.cpu_time * 1e3),
                str(one.count),
            )
            for one in chosen[: row_limit if row_limit >= 0 else None]
        ]
        head = ("name", "kind", "self %", "self", "total", "mean", "calls")
        return "\n".join(_lines(head, rows))


def averages(record: Record) -> Averages:
    """Add up the events of one rank by name."""
    found: dict[tuple[str, str], Average] = {}
    for thread in record.threads:
        for event, own in self_times(thread.events):
            one = found.setdefault((event.kind, event.label), Average(event.label, event.kind))
            one.count += 1
            one.cpu_time_total += (event.end - event.start) / 1e3
            one.self_cpu_time_total += own / 1e3
    return Averages(found.values())
