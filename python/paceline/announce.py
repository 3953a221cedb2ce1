# SPDX-License-Identifier: Apache-2.0
"""What an Accelerator says by itself, on stderr: what is about to run, and files not applied.

``ACCELERATE_LOG_LEVEL=warning`` silences it, ``info`` adds a line of each process.
Knows no Accelerator and no tensor.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .environment import Environment, read_log_level

__all__ = ["Plan", "files_not_applied", "say", "say_process"]


def say(text: str) -> None:
    """Write one line to stderr, unless the log level asks for warnings or errors only."""
    level = logging.getLevelName((read_log_level() or "info").upper())
    if not isinstance(level, int) or level <= logging.INFO:
        print(f"paceline: {text}", file=sys.stderr, flush=True)


def say_process(rank: int, world: int, device: object) -> None:
    """Tell which process this is, where ``ACCELERATE_LOG_LEVEL`` asks for such messages."""
    level = logging.getLevelName((read_log_level() or "warning").upper())
    if isinstance(level, int) and level <= logging.INFO:
        import socket  # 10 ms that nobody else needs

        host, pid = socket.gethostname(), os.getpid()
        say(f"rank {rank} of {world} on {host}, pid {pid}, device {device}")


@dataclass(frozen=True)
class Plan:
    """What will run: processes, device, precision, accumulation."""

    processes: int
    device: str
    precision: str
    accumulation: int

    def line(self, loaders: Iterable[Any]) -> str:
        """Give the line that ``prepare`` writes.

        Parameters
        ----------
        loaders : iterable of DataLoaderShard
            What was prepared, in order.
        """
        many = "process" if self.processes == 1 else "processes"
        # Each has a device of its own: the kind is said, not which is the first one's.
        device = self.device if self.processes == 1 else self.device.partition(":")[0]
        parts = [self._loader(loader) for loader in loaders]
        return f"{self.processes} {many} on {device}, precision {self.precision}; " + " | ".join(
            parts
        )

    def _loader(self, loader: Any) -> str:
        total = getattr(loader, "total_batch_size", None)
        if total is None:
            batch = "global batch unknown"
        else:
            each = total / self.processes
            batch = (
                f"global batch {total * self.accumulation} = {each:g} per process "
                f"x {self.processes} x {self.accumulation} accumulated"
            )
        try:
            steps = math.ceil(len(loader) / self.accumulation)
        except TypeError:  # a stream, or a sampler that does not know its length
            return f"{batch}, unknown number of steps per epoch"
        return f"{batch}, {steps} {'step' if steps == 1 else 'steps'} per epoch"


def files_not_applied(env: Environment, used: dict[str, tuple[object, bool]]) -> str | None:
    """Say which configuration files would have changed this run, had a command applied them.

    Parameters
    ----------
    env : Environment
        Of this process.
    used : dict
        Key of the file: the value in use, and whether an argument or the environment chose it.

    Returns
    -------
    str or None
        One line; None where there is no such file, or paceline's launcher has applied it.
    """
    from .commands.config_file import ConfigFileError, find, load

    if env.launched or env.rank != 0:
        return None
    told: list[str] = []
    settled = {key for key, (_, chosen) in used.items() if chosen}
    for path in find():
        try:
            file = load(path)
        except (ConfigFileError, ImportError) as error:
            told.append(f"{path} (not usable: {str(error).splitlines()[0]})")
            continue
        changed = []
        for key, (value, _) in used.items():
            wanted = file.get(key)
            if wanted is not None and key not in settled:
                settled.add(key)
                if wanted != value:
                    changed.append(f"{key}: {wanted}")
        if changed:
            told.append(f"{path} ({', '.join(changed)})")
    if not told:
        return None
    return (
        f"not applied: {'; '.join(told)}. Only `paceline launch` applies configuration files, "
        f"{os.path.basename(sys.argv[0]) or 'this process'} was started without it"
    )
