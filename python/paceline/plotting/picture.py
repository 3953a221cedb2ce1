# SPDX-License-Identifier: Apache-2.0
"""Draws panels with Matplotlib and writes them as PNG, SVG or one HTML page.

The only file that knows Matplotlib; it is loaded by ``draw``, and without a display.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .errors import PlotError
from .metrics import Line, Panel
from .runs import Run
from .thinning import every, extremes, running_mean

__all__ = ["Style", "draw", "short", "summary"]

#: Colours that people with any colour vision tell apart (Okabe and Ito, "Color Universal Design").
_COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #8B5A2B".split()
_MARKS_UP_TO = 30  # points; above, a line alone is clearer
_SMOOTH_FROM = 200  # points
_HEIGHTS = {"loss": 3.4, "rate": 1.9, "speed": 1.9, "other": 2.6}
_FORMATS = (".png", ".svg", ".html", ".pdf")
_MOST = 2000  # points of a line: more than there are dots across a picture
_LOG_FROM = 50  # ratio of largest to smallest loss from which the axis is logarithmic


@dataclass(frozen=True)
class Style:
    """How to draw.

    Parameters
    ----------
    title : str, optional
        Above the picture; by default the runs' names.
    against_time : bool
        Time since each run's start on the horizontal axis, not steps.
    smooth : int, optional
        Points that are averaged over; 1 for none. By default a fiftieth of a line that has 200
        points or more; the numbers as they were are then drawn faintly behind.
    """

    title: str | None = None
    against_time: bool = False
    smooth: int | None = None


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError("drawing needs Matplotlib: pip install 'paceline[plot]'") from error
    matplotlib.use("agg")
    return matplotlib


def draw(panels: Sequence[Panel], out: Path, style: Style | None = None) -> None:
    """Draw panels one below the other into a file.

    Parameters
    ----------
    panels : sequence of Panel
        What to draw, from the top.
    out : Path
        ``.png``, ``.svg``, ``.pdf``, or ``.html`` for a page with the picture, a table of the
        runs and their hyperparameters, which needs no other file.
    style : Style, optional
        How to draw.

    Raises
    ------
    PlotError
        For another suffix, without Matplotlib, or where times are asked for and unknown.
    """
    if out.suffix.lower() not in _FORMATS:
        raise PlotError(
            f"cannot write {out}: expected a name that ends in {', '.join(_FORMATS[:-1])} or "
            f"{_FORMATS[-1]}"
        )
    style = style or Style()
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_settings()):
        figure = _figure(panels, style)
        if out.suffix.lower() == ".html":
            content = _page(panels, figure, style)
        else:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=out.suffix[1:].lower(), dpi=150)
            content = buffer.getvalue()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)


def _settings() -> dict[str, Any]:
    return {
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.edgecolor": "#888888",
        "axes.titlesize": 11.5,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text: it can be searched and copied
        "svg.hashsalt": "paceline",  # the same picture gives the same file
    }


def _figure(panels: Sequence[Panel], style: Style) -> Any:
    from matplotlib.figure import Figure

    heights = [_HEIGHTS[panel.kind] for panel in panels]
    many = max(len(_legend(panel)) for panel in panels) > 6
    figure = Figure(figsize=(10.5 if many else 8.5, sum(heights) + 0.7), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
    colours = _colours(panels)
    unit = _time_unit(panels) if style.against_time else None
    for ax, panel in zip(axes[:, 0], panels, strict=True):
        _draw_panel(ax, panel, colours, style, unit)
    _place_legends(list(axes[:, 0]), panels, many)
    axes[-1, 0].set_xlabel("step" if unit is None else f"time since the start ({unit[0]})")
    axes[-1, 0].xaxis.set_major_formatter(short)
    axes[0, 0].margins(x=0.02)
    figure.suptitle(style.title or _title(panels), fontsize=11.5)
    return figure


def short(x: float, _: object) -> str:
    """Write a number of the horizontal axis: 9999, 20k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{x:g}"


def _title(panels: Sequence[Panel]) -> str:
    runs = list(_colours(panels))
    what = ", ".join(panel.label for panel in panels)
    whose = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
    return f"{whose}: {what}"


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    names = list(dict.fromkeys(line.run.name for panel in panels for line in panel.lines))
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}


def _time_unit(panels: Sequence[Panel]) -> tuple[str, float]:
    longest = 0.0
    for panel in panels:
        for line in panel.lines:
            times = line.series.times
            if math.isnan(times[0]):
                raise PlotError(f"the run {line.run.path} has no times: draw against steps")
            longest = max(longest, times[-1] - _start(line.run))
    for name, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if longest > 2 * seconds:
            return name, seconds
    return "seconds", 1.0


def _start(run: Run) -> float:
    return min(series.times[0] for series in run.series.values())


def _legend(panel: Panel) -> list[Line]:
    return [] if len(panel.lines) == 1 and panel.kind != "loss" else panel.lines


def _draw_panel(
    ax: Any, panel: Panel, colours: dict[str, str], style: Style, unit: tuple[str, float] | None
) -> None:
    several = len({line.key for line in panel.lines}) > 1
    one_run = len({line.run.name for line in panel.lines}) == 1
    for at, line in enumerate(panel.lines):
        series = line.series
        x = series.steps
        if unit is not None:
            start = _start(line.run)
            x = [(time - start) / unit[1] for time in series.times]
        colour = colours[line.run.name]
        if one_run and several:  # colours tell names apart where they need not tell runs apart
            colour = _COLOURS[at % len(_COLOURS)]
        look = _Look(colour, _window(panel, line, style), _label(line, panel, several, one_run))
        _draw_line(ax, x, line, look)
    windows = {_window(panel, line, style) for line in panel.lines} - {1}
    if windows:
        note = f"bold: mean of {max(windows)} points"
        ax.text(0.01, 0.03, note, transform=ax.transAxes, fontsize=7.5, color="#777777")
    ax.set_ylabel(panel.label)
    if panel.kind == "loss" and _wide(panel):
        ax.set_yscale("log")
    elif panel.kind == "speed":
        finite = [v for line in panel.lines for v in line.series.values if math.isfinite(v)]
        ax.set_ylim(0, 1.12 * max(finite, default=1.0))
    if panel.kind == "rate" and ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)


def _label(line: Line, panel: Panel, several: bool, one_run: bool) -> str:
    name = line.run.name if not several else line.key if one_run else f"{line.run.name}: {line.key}"
    return f"{name}  (last {line.series.last:.4g})" if panel.kind in ("loss", "other") else name


@dataclass(frozen=True)
class _Look:
    colour: str
    window: int  # points averaged over
    label: str


def _draw_line(ax: Any, x: list[float], line: Line, look: _Look) -> None:
    y = line.series.values
    how: dict[str, Any] = {"color": look.colour, "linestyle": "--" if line.held_out else "-"}
    if len(y) <= _MARKS_UP_TO:
        how |= {"marker": "o", "markersize": 3.5}
    if look.window > 1:
        ax.plot(*extremes(x, y, _MOST), color=look.colour, alpha=0.25, linewidth=0.8)
        x, y = every(x, running_mean(y, look.window // 2), _MOST)
    else:
        x, y = extremes(x, y, _MOST)
    ax.plot(x, y, label=look.label, linewidth=1.6, **how)


def _window(panel: Panel, line: Line, style: Style) -> int:
    """Give how many points are averaged over; a learning rate is what it is."""
    n = len(line.series.points)
    if panel.kind == "rate":
        return 1
    return style.smooth or (n // 50 if n >= _SMOOTH_FROM else 1)


def _wide(panel: Panel) -> bool:
    finite = [v for line in panel.lines for v in line.series.values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_FROM


def _place_legends(axes: Sequence[Any], panels: Sequence[Panel], many: bool) -> None:
    told: list[str] = []
    for ax, panel in zip(axes, panels, strict=True):
        lines = _legend(panel)
        names = [f"{line.run.name}/{line.key}" for line in lines]
        runs = [line.run.name for line in lines]
        # Below the first panel, colours that say only which run are known already.
        plain = panel.kind in ("rate", "speed")
        if not lines or (plain and told == runs and len(set(runs)) == len(runs)):
            continue
        told = runs if len(set(runs)) == len(names) else told
        if many:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
        else:
            ax.legend(loc="best", fontsize=8.5)


def summary(run: Run, panels: Sequence[Panel]) -> dict[str, str]:
    """Give what a line about a run tells: steps, time, last and best loss, median throughput."""
    longest = max(run.series.values(), key=lambda series: len(series.points))
    found = {"run": run.name, "steps": f"{max(longest.steps):g}"}
    seconds = longest.times[-1] - _start(run)
    if math.isfinite(seconds):
        found["time"] = _duration(seconds)
    for panel in panels:
        own = [line for line in panel.lines if line.run is run]
        for key, lines in groupby(own, key=lambda line: line.key):
            series = next(lines).series
            finite = sorted(v for v in series.values if math.isfinite(v))
            if not finite:
                found[key] = "never finite"
            elif panel.kind == "loss":
                found[key] = f"last {series.last:.4g}, least {finite[0]:.4g}"
            elif panel.kind == "speed":
                found[key] = f"median {finite[len(finite) // 2]:.4g}"
            else:
                found[key] = f"last {series.last:.4g}"
    return found


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# ------------------------------------------------------------------------------------------------
# The page.

_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}svg{width:100%;height:auto}table{border-collapse:collapse;"
    "margin:1rem 0}th,td{text-align:left;padding:.3rem .9rem;border-bottom:1px solid #ddd}"
    "h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}"
)


def _page(panels: Sequence[Panel], figure: Any, style: Style) -> bytes:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    runs = list({id(line.run): line.run for panel in panels for line in panel.lines}.values())
    title = html.escape(style.title or _title(panels))
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_CSS}</style></head><body><h1>{title}</h1>",
        picture,
        "<h2>Runs</h2>",
        _table([summary(run, panels) for run in runs]),
    ]
    configs = [{"run": run.name} | _texts(run.config) for run in runs if run.config]
    if configs:
        parts += ["<h2>Hyperparameters</h2>", _table(configs)]
    return "\n".join([*parts, "</body></html>\n"]).encode()


def _texts(config: dict[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in config.items()}


def _table(rows: list[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in columns) + "</tr>"]
    for row in rows:
        cells = (html.escape(row.get(column, "")) for column in columns)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])
