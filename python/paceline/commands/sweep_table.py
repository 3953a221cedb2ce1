# SPDX-License-Identifier: Apache-2.0
"""The table of a sweep, as text, JSON and picture. Knows nothing of processes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Row", "draw", "render", "write_json"]

_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One combination.

    Attributes
    ----------
    num_processes, mixed_precision, gradient_accumulation_steps : int, str, int
        What was asked for.
    seconds : float
        From start to exit.
    samples_per_s : float or None
        Of all processes together, without the first two steps; None where unknown.
    peak_bytes : int or None
        Resident memory of the largest process.
    exposed : float or None
        Share of the time spent in waiting for communication, mean over the processes, 0 to 1.
    loss : float or None
        Of the last step, mean over the processes.
    code : int
        Exit code.
    note : str
        Why the row is not to be compared; empty if it is.
    spread : tuple of float
        Smallest and largest samples per second over the rounds.
    """

    num_processes: int
    mixed_precision: str
    gradient_accumulation_steps: int
    seconds: float
    samples_per_s: float | None = None
    peak_bytes: int | None = None
    exposed: float | None = None
    loss: float | None = None
    code: int = 0
    note: str = ""
    spread: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        seconds: float,
        code: int,
        reports: Sequence[Mapping[str, Any]],
    ) -> Row:
        """Make the row of one run from what its ranks reported."""
        row = cls(**settings, seconds=seconds, code=code)
        if code:
            return replace(row, note=f"failed with exit code {code}")
        if not reports:
            return replace(row, note="the script makes no Accelerator")
        own = reports[0]
        chosen = [name for name in settings if own[name] != settings[name]]
        if chosen:
            told = ", ".join(f"{name}={own[name]}" for name in chosen)
            return replace(row, note=f"the script itself sets {told}")
        losses = [report["loss"] for report in reports if report["loss"] is not None]
        shares = [report["exposed"] for report in reports if report["exposed"] is not None]
        rate = own["samples"] / own["seconds"] if own["samples"] else None
        note = "" if rate else "too few steps, or batches of unknown size"
        return replace(
            row,
            samples_per_s=rate,
            peak_bytes=max(int(report["peak_bytes"]) for report in reports),
            exposed=statistics.fmean(shares) if shares else None,
            loss=statistics.fmean(losses) if losses else None,
            note=note,
        )

    @classmethod
    def median(cls, rows: Sequence[Row]) -> Row:
        """Join several runs of one combination; the first that failed stands for all."""
        bad = next((row for row in rows if row.note), None)
        if bad is not None or len(rows) == 1:
            return bad or rows[0]
        rates = [row.samples_per_s for row in rows if row.samples_per_s is not None]
        return replace(
            rows[-1],
            seconds=statistics.median(row.seconds for row in rows),
            samples_per_s=statistics.median(rates),
            spread=(min(rates), max(rates)),
        )


def _speed_up(row: Row, base: Row | None) -> float | None:
    if base is None or not row.samples_per_s or not base.samples_per_s:
        return None
    return row.samples_per_s / base.samples_per_s


def _base(rows: Sequence[Row]) -> Row | None:
    """Give what the others are compared with: the first row that has a rate."""
    return next((row for row in rows if row.samples_per_s), None)


def _efficiency(row: Row, rows: Sequence[Row]) -> float | None:
    """Compare the rate per process with the fewest processes under the same other settings."""
    alike = [
        other
        for other in rows
        if other.samples_per_s
        and other.mixed_precision == row.mixed_precision
        and other.gradient_accumulation_steps == row.gradient_accumulation_steps
    ]
    if not alike or not row.samples_per_s:
        return None
    base = min(alike, key=lambda other: other.num_processes)
    assert base.samples_per_s is not None
    return row.samples_per_s / row.num_processes / (base.samples_per_s / base.num_processes)


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    settings = [
        str(row.num_processes),
        row.mixed_precision,
        str(row.gradient_accumulation_steps),
        f"{row.seconds:.1f} s",
    ]
    speed_up, efficiency = _speed_up(row, _base(rows)), _efficiency(row, rows)
    if row.note or speed_up is None or efficiency is None:
        return [*settings, row.note]
    spread = f" ({row.spread[0]:.4g}-{row.spread[1]:.4g})" if row.spread else ""
    return [
        *settings,
        f"{row.samples_per_s:.4g}{spread}",
        f"{speed_up:.2f}x",
        f"{efficiency:.0%}",
        "" if row.exposed is None else f"{row.exposed:.1%}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / _MIB:.0f} MiB",
        "" if row.loss is None else f"{row.loss:.4f}",
    ]


_HEADS = (
    "processes",
    "precision",
    "accumulation",
    "time",
    "samples/s",
    "speed-up",
    "efficiency",
    "communication",
    "memory",
    "final loss",
)


def render(rows: Sequence[Row]) -> str:
    """Give the table as text, in Markdown.

    ``time`` is the whole run, start and imports included; ``speed-up`` compares samples per second
    with the first row; ``efficiency`` compares that per process with the fewest processes under
    the same other settings; ``communication`` is the share of the time in which a process waited
    for it; ``memory`` is the peak of the largest process.
    """
    table = [list(_HEADS), *(_cells(row, rows) for row in rows)]
    full = [cells for cells in table if len(cells) == len(_HEADS)]
    widths = [max(len(cells[at]) for cells in full) for at in range(len(_HEADS))]
    lines = []
    for cells in table:
        # A note takes the place of all figures, however long it is.
        padded = [cell.ljust(widths[at]) for at, cell in enumerate(cells)]
        lines.append("| " + " | ".join(padded) + " |")
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: str) -> None:
    """Write the rows, with speed-up and efficiency."""
    base = _base(rows)
    found = []
    for row in rows:
        speed_up = _speed_up(row, base)
        found.append({**asdict(row), "speed_up": speed_up, "efficiency": _efficiency(row, rows)})
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=2)
        file.write("\n")


def draw(rows: Sequence[Row], title: str, path: str) -> None:
    """Draw samples per second of each combination, with speed-up written on the bars.

    Raises
    ------
    ImportError
        Without Matplotlib.
    """
    from matplotlib.figure import Figure

    base = _base(rows)
    shown = [row for row in rows if row.samples_per_s]
    figure = Figure(figsize=(7, 1.2 + 0.45 * max(1, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    names = [
        f"{row.num_processes} process{'es' * (row.num_processes > 1)}, {row.mixed_precision}, "
        f"accumulation {row.gradient_accumulation_steps}"
        for row in shown
    ]
    rates = [row.samples_per_s or 0.0 for row in shown]
    several = sorted({row.num_processes for row in shown})
    colours = [f"C{several.index(row.num_processes)}" for row in shown]
    bars = axes.barh(names, rates, color=colours)
    axes.bar_label(bars, [f"{_speed_up(row, base):.2f}x" for row in shown], padding=4)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("samples per second, all processes together")
    axes.set_title(f"paceline sweep {title}: speed-up over the first row")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
