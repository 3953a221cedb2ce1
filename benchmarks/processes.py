# SPDX-License-Identifier: Apache-2.0
"""Starting the ranks of a timed configuration and taking turns between configurations."""

from __future__ import annotations

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
from dataclasses import dataclass, field


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Ranks:
    """The processes of one row: `world` ranks of one group, or of none (``connected=False``)."""

    module: str
    args: list[str]
    world: int = 1
    connected: bool = True
    threads: int = 1
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> None:
        port, run_id = str(free_port()), secrets.token_hex(16)
        for rank in range(self.world):
            env = dict(os.environ, OMP_NUM_THREADS=str(self.threads))
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
                env.pop(name, None)
            if self.connected and self.world > 1:
                env.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.world),
                    LOCAL_WORLD_SIZE=str(self.world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                    PACELINE_RUN_ID=run_id,
                )  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.args],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True,
            )  # fmt: skip
            if self.world > 1 and (os.cpu_count() or 1) >= self.world:
                os.sched_setaffinity(process.pid, {rank})
            self.processes.append(process)
        for process in self.processes:
            self._read(process)

    def _read(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"[benchmarks] {' '.join(self.args)}: the worker ended early")
        return line

    def ask(self, text: str) -> list[str]:
        """Says `text` to all ranks at once and gives their answers."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(text + "\n")
            process.stdin.flush()
        return [self._read(process) for process in self.processes]

    def seconds_per_step(self, steps: int) -> float:
        """Median step of the slowest rank."""
        return max(statistics.median(json.loads(a)) for a in self.ask(f"go {steps}"))

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def cpu_name() -> str:
    from paceline import _C

    info = _C.cpu_info()
    sets = [k for k in ("avx512", "avx512_bf16", "amx_bf16") if info[k]]
    return f"{info['name']} ({', '.join(sets) or 'no AVX-512'}), {info['count']} cores"


def summary(values: list[float]) -> tuple[float, float, float]:
    """Minimum, median, maximum."""
    return min(values), statistics.median(values), max(values)
