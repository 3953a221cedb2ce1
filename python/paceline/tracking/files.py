# SPDX-License-Identifier: Apache-2.0
"""Trackers that write plain files: ``csv`` and ``jsonl``. The format is in docs/tracking.md.

Both write ``<logging_dir>/<project>/metrics.<suffix>`` and ``config.json`` beside it. A row is one
``write`` to the end of the file, so that a process killed at any moment leaves whole rows, but for
the last, which the next start cuts off. A whole file is replaced by renaming a finished one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from typing import Any

from .._replacing import replacing
from .base import GeneralTracker, on_main_process
from .values import Plain, flat

__all__ = ["OWN_FIELDS", "CSVTracker", "JSONLTracker"]

#: What each row begins with: the step given (or empty), seconds since 1970, and how often the
#: tracker had been started on this file before.
OWN_FIELDS = ("_step", "_time", "_session")


def _json_number(value: Plain) -> Plain:
    # JSON has no NaN; as text it is still read back by float().
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


class FileTracker(GeneralTracker):
    """What the two have in common: place, sessions, appending whole rows.

    Parameters
    ----------
    run_name : str
        Name of the folder below ``logging_dir``.
    logging_dir : path
        Where runs are kept.
    """

    name: str
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.logging_dir = os.path.join(os.fspath(logging_dir), run_name)
        self.path = os.path.join(self.logging_dir, f"metrics.{self.name}")
        self._fd = -1
        self._session = 0

    @property
    def tracker(self) -> str:
        """Path of the file."""
        return self.path

    @on_main_process
    def start(self) -> None:
        """Open the file, or go on with one that is there."""
        os.makedirs(self.logging_dir, exist_ok=True)
        self._open()
        text = self._whole_lines()
        self._session = self._sessions(text)

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _whole_lines(self) -> str:
        """Give what the file holds, after cutting off a line that was never finished."""
        with open(self.path, "rb") as file:
            content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)
        return content[:end].decode("utf-8", "replace")

    def _append(self, line: str) -> None:
        if self._fd < 0:
            raise RuntimeError(
                f"[log] the {self.name} tracker is not running: call "
                "accelerator.init_trackers(...) first, and end_training() last"
            )
        data = memoryview(line.encode())
        while data:  # one write, unless the disk is nearly full
            data = data[os.write(self._fd, data) :]

    def _row(self, values: dict[str, Any], step: int | None) -> dict[str, Plain]:
        own = (step if step is None else int(step), round(time.time(), 6), self._session)
        row = dict(zip(OWN_FIELDS, own, strict=True))
        return row | {k: v for k, v in flat(values).items() if k not in OWN_FIELDS}

    def _sessions(self, text: str) -> int:
        raise NotImplementedError

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write ``config.json``; what is neither number nor text is written as its ``str``."""
        text = json.dumps(values, indent=2, default=str) + "\n"
        with replacing(os.path.join(self.logging_dir, "config.json"), flush=True) as file:
            file.write(text)

    @on_main_process
    def finish(self) -> None:
        """Close the file; it may be started again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JSONLTracker(FileTracker):
    """One JSON object a line, in ``metrics.jsonl``."""

    name = "jsonl"

    def _sessions(self, text: str) -> int:
        # Sessions only grow, so the last line knows.
        last = text.rstrip("\n").rpartition("\n")[2]
        return json.loads(last)["_session"] + 1 if last else 0

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append one line."""
        row = {k: _json_number(v) for k, v in self._row(values, step).items()}
        self._append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


class CSVTracker(FileTracker):
    """One row a call, in ``metrics.csv``; a name that is new adds a column to the whole file."""

    name = "csv"

    def __init__(self, run_name: str, logging_dir: str | os.PathLike[str]) -> None:
        super().__init__(run_name, logging_dir)
        self._columns: list[str] = []

    def _sessions(self, text: str) -> int:
        rows = list(csv.reader(io.StringIO(text)))
        self._columns = rows[0] if rows else []
        if self._columns[: len(OWN_FIELDS)] != list(OWN_FIELDS) and rows:
            raise ValueError(
                f"[csv] {self.path} was not written by this tracker: got the columns "
                f"{self._columns[:3]}, expected {list(OWN_FIELDS)}; use another project name"
            )
        return int(rows[-1][2]) + 1 if len(rows) > 1 else 0

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append one row."""
        row = self._row(values, step)
        new = [name for name in row if name not in self._columns]
        if new and self._fd >= 0:
            self._widen(new)
        self._append(_csv_line([_csv_cell(row.get(name)) for name in self._columns]))

    def _widen(self, new: list[str]) -> None:
        rows = list(csv.reader(io.StringIO(self._whole_lines())))
        columns = self._columns + new
        lines = [_csv_line(columns)]
        lines += [_csv_line(row + [""] * (len(columns) - len(row))) for row in rows[1:]]
        with replacing(self.path, flush=True) as file:
            file.writelines(lines)
        self._columns = columns
        self._open()  # the old file is no longer the one of this name


def _csv_cell(value: Plain) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _csv_line(cells: list[str]) -> str:
    out = io.StringIO()
    # One line a row whatever a text holds, so that a torn row can be told by its end.
    cells = [cell.replace("\r\n", " ").replace("\n", " ").replace("\r", " ") for cell in cells]
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
