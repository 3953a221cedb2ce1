# SPDX-License-Identifier: Apache-2.0
"""The ranks of a timed configuration: started, asked in turn, stopped.

A worker is a module that ends in ``answer.serve``. Every wait for one has an end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import summary

__all__ = ["Ranks", "WorkerFailed", "cpu_name", "free_port", "package_path", "summary"]

TIMEOUT_S = 600.0  # of one answer: a compiler may work for minutes before the first
RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class WorkerFailed(RuntimeError):
    """A worker ended, raised or did not answer."""


def free_port() -> int:
    """A port of this machine that nobody holds at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def package_path() -> str:
    """What PYTHONPATH must hold for a worker: this checkout, and paceline where it comes from."""
    import paceline

    here = Path(__file__).resolve().parents[1]
    return os.pathsep.join([str(here), str(Path(paceline.__file__).resolve().parents[1])])


@dataclass
class Ranks:
    """The processes of one row: `world` ranks of one group, or of none (``connected=False``).

    One thread each where `threads` is 1; one core each where there are as many cores as ranks.
    """

    module: str
    args: list[str]
    world: int = 1
    connected: bool = True
    threads: int = 1
    needs: str = ""  # the peer that must be installed
    absent: str = ""  # why the row cannot run here
    python: str = sys.executable
    env_of: Callable[[int], dict[str, str]] | None = None
    prefixes: list[list[str]] = field(default_factory=list)
    pin: bool = True
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ready: list[Any] = field(default_factory=list)

    def start(self) -> None:
        """Start the ranks and wait until each says that it is ready."""
        port, run_id = str(free_port()), secrets.token_hex(16)
        for rank in range(self.world):
            env = dict(os.environ, OMP_NUM_THREADS=str(self.threads), PYTHONPATH=package_path())
            for name in RANK_NAMES:
                env.pop(name, None)
            if self.connected and self.world > 1:
                env.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.world),
                    LOCAL_WORLD_SIZE=str(self.world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                    PACELINE_RUN_ID=run_id,
                )  # fmt: skip
            if self.env_of:
                env.update(self.env_of(rank))
            prefix = self.prefixes[rank] if self.prefixes else []
            process = subprocess.Popen(
                [*prefix, self.python, "-m", self.module, *self.args],
                # A session of its own: Ctrl-C is for the one who takes the figures.
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True,
            )  # fmt: skip
            self.processes.append(process)
            if self.pin:
                self._pin(process.pid, rank)
        self.ready = [self._read(process) for process in self.processes]

    def _pin(self, pid: int, rank: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= self.world and (self.world > 1 or self.threads == 1):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, {cores[rank]})

    def _read(self, process: subprocess.Popen[bytes]) -> Any:
        assert process.stdout is not None
        who = f"[benchmarks] {self.module} {' '.join(self.args)}"
        end = time.monotonic() + TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise WorkerFailed(f"{who}: no answer for {TIMEOUT_S:.0f} s")
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise WorkerFailed(f"{who}: the worker ended early, code {process.wait(10)}")
            line += piece
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerFailed(f"{who}: {answer['failed']}")
        return answer["ok"]

    def ask(self, text: str) -> list[Any]:
        """Say `text` to all ranks at once and give their answers."""
        for process in self.processes:
            assert process.stdin is not None
            try:
                process.stdin.write(text.encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise WorkerFailed(f"[benchmarks] {self.module}: the worker has ended") from None
        return [self._read(process) for process in self.processes]

    def seconds_per_step(self, steps: int) -> float:
        """Median step of the slowest rank."""
        return max(float(statistics.median(a)) for a in self.ask(f"go {steps}"))

    def stop(self) -> None:
        """End the ranks; they have nothing to finish."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self.processes.clear()


@contextlib.contextmanager
def stopping(rows: dict[str, Ranks]) -> Iterator[dict[str, Ranks]]:
    """Stop every row at the end, however it ends."""
    try:
        yield rows
    finally:
        for row in rows.values():
            row.stop()


def cpu_name() -> str:
    """The processor, what it has of what matters here, and how many cores there are."""
    from paceline import _C

    info = _C.cpu_info()
    sets = [k for k in ("avx512", "avx512_bf16", "amx_bf16") if info[k]]
    return f"{info['name']} ({', '.join(sets) or 'no AVX-512'}), {info['count']} cores"
