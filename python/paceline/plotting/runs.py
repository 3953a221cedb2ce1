# SPDX-License-Identifier: Apache-2.0
"""Finds runs and reads the numbers that trackers wrote: csv, jsonl, TensorBoard's event files.

A run is a folder that holds such files, or one file. A tracker that was started again on the same
folder, as after a crash, began a new session: from its first step on, what earlier sessions wrote
does not count any more, so that a resumed run is one line.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .._progress import bytes_moved
from .errors import PlotError
from .event_files import read_scalars

__all__ = ["Run", "Series", "find_runs"]

_OWN = ("_step", "_time", "_session")
_STEPS = ("_step", "step", "global_step")  # where a row may say its step; the first that is there


class Point(NamedTuple):
    """One number that was logged; time in seconds since 1970, NaN where unknown."""

    step: float
    time: float
    value: float


@dataclass
class Series:
    """The numbers logged under one name, in the order of their steps."""

    points: list[Point] = field(default_factory=list)
    _session: int = -1

    def add(self, point: Point, session: int) -> None:
        """Add a number; the first of a new session replaces what lies at and after its step."""
        if session != self._session:
            self._session = session
            self.points = [old for old in self.points if old.step < point.step]
        self.points.append(point)

    @property
    def steps(self) -> list[float]:
        """The steps."""
        return [point.step for point in self.points]

    @property
    def times(self) -> list[float]:
        """The times, in seconds since 1970."""
        return [point.time for point in self.points]

    @property
    def values(self) -> list[float]:
        """The numbers."""
        return [point.value for point in self.points]

    @property
    def last(self) -> float:
        """The last number that is not NaN; NaN if there is none."""
        return next((v for v in reversed(self.values) if not math.isnan(v)), math.nan)


@dataclass
class Run:
    """What one training logged.

    Attributes
    ----------
    name : str
        For the legend.
    path : Path
        Folder or file that it was read from.
    series : dict
        By the name that was logged.
    config : dict
        Hyperparameters, where a ``config.json`` stands beside.
    """

    name: str
    path: Path
    series: dict[str, Series] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, point: Point, session: int) -> None:
        """Add one number."""
        self.series.setdefault(key, Series()).add(point, session)


def find_runs(texts: Iterable[str]) -> list[Run]:
    """Read runs from arguments as a user gives them.

    Parameters
    ----------
    texts : iterable of str
        Files or folders; ``name=path`` names a run. A folder that holds no run's files itself
        stands for all runs below it.

    Raises
    ------
    PlotError
        When there is nothing there, or it cannot be read; the message says what was expected.
    """
    runs: list[Run] = []
    for text in texts:
        name, path = _named(text)
        found = [path] if path.is_file() or _files(path) else _below(path)
        if not found:
            raise PlotError(
                f"no run in {path}: expected metrics.csv or metrics.jsonl (of "
                "log_with='csv' or 'jsonl') or TensorBoard's events.out.tfevents.* in it or below"
            )
        for one in found:
            label = name if one == path else str(one.relative_to(path))
            runs.append(_read(label, one))
    return _distinct(runs)


def _named(text: str) -> tuple[str, Path]:
    name, equals, rest = text.partition("=")
    path = Path(text)
    if equals and not path.exists():
        path = Path(rest)
    else:
        name = ""
    if not path.exists():
        near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise PlotError(f"no run {path}: there is no such file or folder{hint}")
    if not name:
        whole = path.resolve()
        is_own = path.is_file() and path.stem == "metrics" or path.name.startswith("events.out")
        name = whole.parent.name if is_own else whole.stem if path.is_file() else whole.name
    return name, path


def _names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    """Give the files that a run is read from; of several formats the first that is there."""
    if not folder.is_dir():
        return []
    for pattern in ("metrics.jsonl", "metrics.csv", "events.out.tfevents.*"):
        found = sorted(path for path in folder.glob(pattern) if path.stat().st_size > 0)
        if found:
            return found
    return []


def _below(folder: Path) -> list[Path]:
    """Give the folders of runs below; what lies inside a run is a part of it."""
    found: list[Path] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        if _files(path) and not any(path.is_relative_to(run) for run in found):
            found.append(path)
    return found


def _distinct(runs: list[Run]) -> list[Run]:
    """Put the folder above in front of names that several runs have."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            above = run.path.resolve().parent
            run.name = f"{above.parent.name if run.path.is_file() else above.name}/{run.name}"
    return runs


def _read(name: str, path: Path) -> Run:
    run = Run(name, path)
    files = [path] if path.is_file() else _files(path)
    for session, file in enumerate(files):
        if file.suffix == ".csv":
            _read_rows(run, _csv_rows(file))
        elif file.suffix in (".jsonl", ".json"):
            _read_rows(run, _jsonl_rows(file))
        elif ".tfevents." in file.name:
            for tag, step, time, value in read_scalars(file):
                run.add(tag, Point(step, time, value), session)
        else:
            raise PlotError(
                f"cannot read {file}: expected a .csv or .jsonl file, or TensorBoard's "
                "events.out.tfevents.*"
            )
    if path.is_dir() and ".tfevents." in files[0].name:
        _read_groups(run, path)
    _read_config(run, path if path.is_dir() else path.parent)
    if not run.series:
        raise PlotError(f"the run {path} holds no numbers yet")
    return run


def _read_groups(run: Run, folder: Path) -> None:
    """Add what ``add_scalars`` wrote into folders of its own, one for each name of a group."""
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        if path.parent == folder:
            continue
        group = path.parent.relative_to(folder).as_posix()
        for tag, step, time, value in read_scalars(path):
            key = group if group.startswith(tag.replace(" ", "_")) else f"{group}/{tag}"
            run.add(key, Point(step, time, value), 0)


def _read_config(run: Run, folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(config, dict):
        run.config = config


def _read_rows(run: Run, rows: Iterator[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        where = next((name for name in _STEPS if name in row), "_step")
        step = _number(row.get(where))
        time = _number(row.get("_time"))
        session = int(_number(row.get("_session")) or 0)
        for key, value in row.items():
            found = None if key in _OWN or key == where else _number(value)
            if found is not None:
                at = number if step is None else step
                run.add(key, Point(at, math.nan if time is None else time, found), session)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _lines(path: Path) -> Iterator[str]:
    """Give the lines of a file; shows how far it is after a second."""
    with (
        path.open(encoding="utf-8", errors="replace", newline="") as file,
        bytes_moved(f"reading {path.name}", path.stat().st_size) as moved,
    ):
        for line in file:
            moved(len(line))
            yield line


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in csv.DictReader(_lines(path)):
        row.pop(None, None)  # more cells than columns
        yield row


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith("\n"):  # still being written
                return
            raise PlotError(f"{path}:{number} is not JSON: {error}") from error
        if isinstance(row, dict):
            yield row
