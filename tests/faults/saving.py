# SPDX-License-Identifier: Apache-2.0
"""A tiny run to save, a digest of all it is, and system calls that fail or kill on purpose."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paceline as torch
from paceline import Accelerator, PartialState
from paceline.checkpoint import disk, folder, sharded

#: What can touch a disk. Each is one step at which a save may be cut short.
CALLS = (
    "open close write pwrite fsync ftruncate mkdir makedirs rename link symlink unlink rmdir "
    "exchange"
).split()


class Counter:
    """Something else that a checkpoint holds."""

    def __init__(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


class Tiny:
    """A run that can be trained by a step, saved, loaded and compared."""

    def __init__(self, seed: int = 0) -> None:
        PartialState._reset_state()
        torch.manual_seed(seed)
        random.seed(seed)
        self.accelerator = Accelerator()
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.counter = Counter()
        self.accelerator.register_for_checkpointing(self.counter)

    def step(self) -> None:
        loss = (self.model(torch.randn(3, 5)) ** 2).mean()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.counter.n += 1
        random.random()

    def digest(self) -> str:
        """Everything that must come back."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "python": random.getstate(),
            "counter": self.counter.n,
        }
        return disk.digest(repr(_listed(state)).encode())

    def save(self, path: Path) -> None:
        self.accelerator.save_state(path)

    def loaded(self, path: Path) -> str:
        """Digest of this run after loading; random states are as before then."""
        python, ours = random.getstate(), torch.get_rng_state()
        try:
            self.accelerator.load_state(path)
            return self.digest()
        finally:
            random.setstate(python)
            torch.set_rng_state(ours)


def _listed(obj: Any) -> Any:
    if isinstance(obj, torch.Tensor):
        return obj.tolist()
    if isinstance(obj, dict):
        return [(key, _listed(value)) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        return [_listed(value) for value in obj]
    return obj


class Calls:
    """Stands for ``os`` in the modules that write checkpoints, and counts what touches the disk.

    At call number ``at`` (from 1) ``act(name, real, args)`` is called in its place.
    """

    def __init__(self, at: int = 0, act: Callable[..., Any] | None = None) -> None:
        self.at = at
        self.act = act
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.wrap(name, real) if name in CALLS else real

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            if len(self.names) == self.at and self.act is not None:
                return self.act(name, real, args, kwargs)
            return real(*args, **kwargs)

        return call


@contextmanager
def injected(calls: Calls, can_exchange: bool = True) -> Iterator[Calls]:
    """Put ``calls`` in the place of ``os`` where checkpoints are written and removed."""
    modules = (disk, folder, sharded, shutil)
    exchange = disk.exchange
    for module in modules:
        module.os = calls  # type: ignore[attr-defined]
    replaced = exchange if can_exchange else lambda one, other: False
    disk.exchange = calls.wrap("exchange", replaced)
    try:
        yield calls
    finally:
        disk.exchange = exchange
        for module in modules:
            module.os = os  # type: ignore[attr-defined]


def kill(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Die before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half_way(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Die in the middle of a write."""
    if name == "write":
        fd, data = args
        real(fd, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int) -> Callable[..., Any]:
    """Refuse the call."""

    def act(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if name == "close":  # which closes even where it complains
            real(*args)
        raise OSError(code, os.strerror(code))

    return act


def count(tiny: Tiny, path: Path, can_exchange: bool = True) -> list[str]:
    """Names of the calls that a save makes."""
    with injected(Calls(), can_exchange) as calls:
        tiny.save(path)
    return calls.names


def fork(work: Callable[[], None]) -> int:
    """Run in a forked process; its id."""
    state = random.getstate()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            random.setstate(state)  # Python seeds it anew in a child
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leftovers(parent: Path) -> list[str]:
    """Names that only an unfinished save has."""
    return [p.name for p in parent.iterdir() if ".tmp-" in p.name or ".old-" in p.name]


REFUSALS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
