# SPDX-License-Identifier: Apache-2.0
"""One run of benchmarks: what is wanted, who takes part, and the turns that rows take.

Rows of one table live at the same time and are asked in turn, round by round, so that a machine's
drift meets every row. Ctrl-C ends the rounds and keeps those that are complete.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peers import PEERS, Peers
from benchmarks.processes import Ranks, WorkerFailed, cpu_name, stopping
from benchmarks.table import Row

T = TypeVar("T")
SLOW_S = 5.0  # a row whose turn takes longer is asked once


@dataclass
class Session:
    """What a part is given. `quick`: the smallest sizes, to see that it runs, not how fast."""

    rounds: int = 5
    quick: bool = False
    peers: Peers = field(default_factory=Peers)
    models: tuple[str, ...] = ()  # as named on the command line; else each part has its own
    precisions: tuple[str, ...] = ("fp32", "bf16")
    cases: tuple[str, ...] = ("1-thread", "2-threads", "2-processes")
    wires: tuple[str, ...] = ()  # of scaling; all if none is named
    interrupted: bool = False

    def say(self, text: str) -> None:
        """Show progress."""
        print(f"  .. {text}", file=sys.stderr, flush=True)

    def go_on(self) -> None:
        """End a part that begins something new after Ctrl-C; what it has is still yielded."""
        if self.interrupted:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def running(self, rows: dict[str, Ranks], what: str) -> Iterator[Contest]:
        """Start the rows of a table, those whose peer is installed; stop them at the end."""
        self.go_on()
        contest = Contest(self, what, rows)
        for name, row in rows.items():
            if row.absent:
                contest.failed[name] = row.absent
            elif row.needs and not self.peers.has(row.needs):
                contest.failed[name] = self.peers.why_not(row.needs)
            elif row.needs:
                row.python = self.peers.python(row.needs)
        with stopping(rows):
            contest.start()
            yield contest


@dataclass
class Contest:
    """Rows that are alive at the same time. Rows of ours must work; a peer's may fail."""

    session: Session
    what: str
    rows: dict[str, Ranks]
    failed: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start row by row."""
        for name, row in self.rows.items():
            if name in self.failed:
                continue
            self.session.say(f"{self.what}: starts {name}")
            try:
                row.start()
            except WorkerFailed as error:
                self._fails(name, error)

    def _fails(self, name: str, error: WorkerFailed) -> None:
        if name.startswith("paceline"):
            raise error
        self.session.say(f"{self.what}: {name} failed: {error}")
        self.failed[name] = "failed"
        self.rows[name].stop()

    def turns(self, ask: Callable[[str, Ranks], T]) -> dict[str, list[T] | str]:
        """Ask every row once per round; the answers, or why there are none."""
        took: dict[str, list[T]] = {name: [] for name in self.rows}
        once = {
            name for name, row in self.rows.items()
            if any(isinstance(r, dict) and r["seconds"] > SLOW_S for r in row.ready)
        }  # fmt: skip
        try:
            for k in range(self.session.rounds):
                self.session.say(f"{self.what}: round {k + 1} of {self.session.rounds}")
                for name, row in self.rows.items():
                    if name in self.failed or (k and name in once):
                        continue
                    try:
                        took[name].append(ask(name, row))
                    except WorkerFailed as error:
                        self._fails(name, error)
        except KeyboardInterrupt:
            self.session.interrupted = True
            self.session.say(f"{self.what}: interrupted, keeps the complete rounds")
            kept = [len(v) for n, v in took.items() if n not in once and n not in self.failed]
            # In the first round: those rows that were asked.
            took = {name: values[: min(kept, default=1) or 1] for name, values in took.items()}
        return {**took, **self.failed}


def alternate(
    session: Session, what: str, calls: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """Make every call once per round: turns of things that are not processes that stay."""
    session.go_on()
    took: dict[str, list[float]] = {name: [] for name in calls}
    try:
        for k in range(session.rounds):
            session.say(f"{what}: round {k + 1} of {session.rounds}")
            for name, call in calls.items():
                took[name].append(call())
    except KeyboardInterrupt:
        session.interrupted = True
        done = min(map(len, took.values()))
        took = {name: values[:done] for name, values in took.items()}
    return took


def row_of(case: str, ours: str, took: Mapping[str, Any], peers: dict[str, str]) -> Row:
    """The row of a case: `peers` maps names in `took` to the names that are shown."""
    theirs = {shown: took[name] for name, shown in peers.items() if name in took}
    return Row(case, took.get(ours, []), theirs)


def head(session: Session, words: list[str]) -> dict[str, Any]:
    """What a reader must know about the machine and the programs to compare figures."""
    versions = {name: session.peers.version(name) for name in ("paceline", "numpy", *PEERS)}
    return {
        "cpu": cpu_name(),
        "command": command(words),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {name: version for name, version in versions.items() if version},
        "load_at_start": list(os.getloadavg()),
        "date": datetime.date.today().isoformat(),
        "rounds": session.rounds,
        "quick": session.quick,
    }


def command(words: list[str]) -> str:
    """The words that say what is measured, without where this machine keeps things."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith(("--json", "--python-")):
            kept.append(f"'{word}'" if " " in word else word)
        skip = word == "--json" or (word.startswith("--python-") and "=" not in word)
    return " ".join(kept)


def commit() -> str:
    """The checkout's commit, with a plus where files were changed since."""
    try:
        here = Path(__file__).resolve().parent
        run = ["git", "-C", str(here), "describe", "--always", "--exclude", "*", "--dirty=+"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def head_text(values: dict[str, Any]) -> str:
    """The head for a terminal."""
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    load = ", ".join(f"{v:.1f}" for v in values["load_at_start"])
    return (
        f"{values['cpu']}; kernel {values['kernel']}; Python {values['python']}\n"
        f"commit {values['commit']}; {versions}\n"
        f"{values['rounds']} rounds, interleaved; load at the start {load}"
        + ("; quick: sizes that say nothing about speed" if values["quick"] else "")
    )
