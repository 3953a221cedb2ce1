# SPDX-License-Identifier: Apache-2.0
"""Runs ``paceline launch`` on small scripts, and checks that nothing of the job is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import harness

SLACK = 5  # what is promised is asserted times this: the machine is shared


@dataclass
class Run:
    """A launcher that has ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass
class Running:
    """A launcher that runs; its output goes to files."""

    process: subprocess.Popen[bytes]
    tag: str
    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def until(self, text: str, times: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until stdout has `text`, `times` times."""
        deadline = time.monotonic() + timeout_s
        while self.stdout.count(text) < times:
            assert self.process.poll() is None, f"ended early\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < deadline, f"no {text!r}\n{self.stdout}\n{self.stderr}"
            time.sleep(0.01)

    def end(self, sig: int | None = None, timeout_s: float = 60.0) -> Run:
        """Send a signal, wait for the launcher, say how long that took."""
        begin = time.monotonic()
        if sig is not None:
            self.process.send_signal(sig)
        code = self.process.wait(timeout_s)
        return Run(code, self.stdout, self.stderr, time.monotonic() - begin)

    def left(self, within_s: float) -> list[int]:
        """Processes of the job that are still there after `within_s`; returns early if none."""
        deadline = time.monotonic() + within_s
        while (pids := harness.tagged(self.tag)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return pids


def environment(tag: str, env: Mapping[str, str | None] | None) -> dict[str, str]:
    """The environment for a launcher: paceline importable, no configuration file, no job."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PACELINE_"))}
    base.pop("OMP_NUM_THREADS", None)
    base |= {
        "PYTHONPATH": os.pathsep.join(harness._paths()),
        "HF_HOME": "/nonexistent",
        harness.TAG: tag,
    }
    for key, value in (env or {}).items():
        base.pop(key, None)
        if value is not None:
            base[key] = value
    return base


@contextmanager
def start(
    folder: Path,
    script: str,
    *flags: str,
    args: tuple[str, ...] = (),
    env: Mapping[str, str | None] | None = None,
    n: int = 2,
) -> Iterator[Running]:
    """Start the launcher on a script; whatever happens, leave no process behind."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    argv = [sys.executable, "-m", "paceline.commands.launch", f"--num_processes={n}", *flags]
    with start_argv(folder, [*argv, str(path), *args], env) as running:
        yield running


@contextmanager
def start_argv(
    folder: Path, argv: list[str], env: Mapping[str, str | None] | None = None
) -> Iterator[Running]:
    """Start any program under a tag."""
    tag = uuid.uuid4().hex
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(tag, env),
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield Running(process, tag, folder)
    finally:
        process.kill()
        process.wait()
        for pid in harness.tagged(tag):
            os.kill(pid, signal.SIGKILL)


def launch(
    folder: Path,
    script: str,
    *flags: str,
    args: tuple[str, ...] = (),
    env: Mapping[str, str | None] | None = None,
    n: int = 2,
) -> Run:
    """Run the launcher on a script to its end; nothing of the job may be left."""
    with start(folder, script, *flags, args=args, env=env, n=n) as running:
        run = running.end()
        assert running.left(1.0 * SLACK) == []
        return run


def no_new_names(before: set[str], within_s: float = 5.0) -> None:
    """Check that nothing is left since `before`; other jobs of the machine come and go."""
    deadline = time.monotonic() + within_s
    while harness.names() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert harness.names() - before == set()


def command(folder: Path, *words: str, env: Mapping[str, str | None] | None = None) -> Run:
    """Run ``paceline WORDS...`` to its end."""
    argv = [sys.executable, "-m", "paceline.commands", *words]
    with start_argv(folder, argv, env) as running:
        return running.end()
