# SPDX-License-Identifier: Apache-2.0
"""Which of the logged names is the loss, the learning rate, the throughput."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .errors import PlotError
from .runs import Point, Run, Series

__all__ = ["Line", "Panel", "choose_panels"]

_LOSS = re.compile(r"loss|perplexity|\bnll\b", re.IGNORECASE)
_RATE = re.compile(r"(^|[/_.\- ])(lr|learning[_ ]?rate)($|[/_.\- 0-9])", re.IGNORECASE)
_SPEED = re.compile(
    r"throughput|(samples|tokens|images|examples|rows|steps|batches|it|iter)"
    r"(_per_|[_ ]?/[_ ]?)(s|sec|second)\b",
    re.IGNORECASE,
)
_HELD_OUT = re.compile(
    r"(^|[/_.\- ])(eval|val|valid|validation|test|dev)($|[/_.\- ])", re.IGNORECASE
)


@dataclass(frozen=True)
class Line:
    """One line of a picture: whose numbers, under which name."""

    run: Run
    key: str
    series: Series

    @property
    def held_out(self) -> bool:
        """Whether the numbers come from data that is not trained on, by their name."""
        return _HELD_OUT.search(self.key) is not None


@dataclass
class Panel:
    """One pair of axes.

    Attributes
    ----------
    label : str
        What the vertical axis shows, with its unit.
    kind : str
        ``"loss"``, ``"rate"``, ``"speed"`` or ``"other"``.
    """

    label: str
    kind: str
    lines: list[Line] = field(default_factory=list)


def choose_panels(runs: Sequence[Run], keys: Iterable[str] | None = None) -> list[Panel]:
    """Decide what is drawn.

    Parameters
    ----------
    runs : sequence of Run
        What was read.
    keys : iterable of str, optional
        Names to draw, each in a panel of its own; by default loss, learning rate and throughput.
        Where no throughput was logged, steps per second are found from the times of the rows.

    Raises
    ------
    PlotError
        When no run has a name that was asked for, or none has anything to draw; the message
        lists the names there are.
    """
    if keys is not None:
        return [_named(runs, key) for key in keys]
    panels = [
        _matching(runs, _LOSS, "loss", "loss"),
        _matching(runs, _RATE, "learning rate", "rate"),
        _speed(runs),
    ]
    chosen = [panel for panel in panels if panel.lines]
    if not any(panel.kind != "speed" for panel in chosen):
        raise PlotError(
            f"nothing to draw: none of the names logged is a loss or a learning rate, there are "
            f"{_all_keys(runs)}; choose with --keys"
        )
    return chosen


def _all_keys(runs: Iterable[Run]) -> str:
    return ", ".join(sorted({key for run in runs for key in run.series}))


def _named(runs: Sequence[Run], key: str) -> Panel:
    kind = next(
        (kind for kind, form in (("loss", _LOSS), ("rate", _RATE), ("speed", _SPEED))
         if form.search(key)),
        "other",
    )  # fmt: skip
    panel = Panel(key, kind)
    panel.lines = [Line(run, key, run.series[key]) for run in runs if key in run.series]
    if not panel.lines:
        names = {name for run in runs for name in run.series}
        near = difflib.get_close_matches(key, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise PlotError(f"no run logged {key!r}{hint}: there are {_all_keys(runs)}")
    return panel


def _matching(runs: Sequence[Run], form: re.Pattern[str], label: str, kind: str) -> Panel:
    panel = Panel(label, kind)
    for run in runs:
        keys = [key for key in run.series if form.search(key)]
        lines = [Line(run, key, run.series[key]) for key in sorted(keys)]
        panel.lines += sorted(lines, key=lambda line: line.held_out)  # training first
    if len({line.key for line in panel.lines}) == 1:
        panel.label = panel.lines[0].key if kind == "loss" else label
    return panel


def _speed(runs: Sequence[Run]) -> Panel:
    logged = _matching(runs, _SPEED, "throughput", "speed")
    keys = {line.key for line in logged.lines}
    if keys:
        logged.label = _unit(next(iter(keys))) if len(keys) == 1 else "throughput"
        return logged
    lines = [Line(run, "steps/s", series) for run in runs if (series := _steps_per_second(run))]
    return Panel("steps/s", "speed", lines)


def _unit(key: str) -> str:
    name = re.sub(r"_per_(s|sec|second)$", "/s", key.rpartition("/")[2] or key)
    return key if name == "s" else name


def _steps_per_second(run: Run) -> Series | None:
    """Find how fast steps went by, from the times of the name that was logged most."""
    longest = max(run.series.values(), key=lambda series: len(series.points))
    # Over some rows at a time: two rows may be logged at almost the same moment.
    stride = max(1, len(longest.points) // 50)
    kept = longest.points[::stride]
    speeds = [
        Point(after.step, after.time, (after.step - before.step) / (after.time - before.time))
        for before, after in zip(kept, kept[1:], strict=False)
        if after.time > before.time and after.step > before.step
    ]
    if len(speeds) < 2:
        return None
    # Between a crash and the restart there was no speed to speak of.
    usual = sorted(point.value for point in speeds)[len(speeds) // 2]
    return Series([point for point in speeds if point.value > usual / 20])
