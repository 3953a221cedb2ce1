# SPDX-License-Identifier: Apache-2.0
"""Machines for tests: network namespaces, each with an address of its own, joined by a switch.

``with Net((2, 1)) as net`` gives two machines with two ranks and one; ``net.ranks(body)`` runs a
body on them as ``harness.Ranks`` does. Needs root; skips the test where that is not given. What it
makes has the process's number in its name and is taken down again.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import Ranks, Result, _result

PORT = 29400


def _ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode == 0


class Net:
    """Machines with the given numbers of ranks."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.world = sum(sizes)
        self._switch = f"pl{os.getpid()}s"
        self._names = [f"pl{os.getpid()}m{k}" for k in range(len(sizes))]

    def __enter__(self) -> Net:
        try:
            made = os.geteuid() == 0 and _ip("netns", "add", self._switch, check=False)
        except FileNotFoundError:
            made = False
        if not made:
            pytest.skip("network namespaces cannot be made: that needs root and iproute2")
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="machines-")
        self.secret = Path(self._dir.name) / "paceline.secret"
        self.secret.write_text("correct horse battery staple, and then some")
        self.secret.chmod(0o600)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for k, name in enumerate(self._names):
            _ip("netns", "add", name)
            _ip("link", "add", f"p{k}", "netns", self._switch,
                "type", "veth", "peer", "name", "eth0", "netns", name)  # fmt: skip
            _ip("-n", self._switch, "link", "set", f"p{k}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{self.address(k)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def __exit__(self, *_: object) -> None:
        for name in (*self._names, self._switch):
            _ip("netns", "del", name, check=False)
        self._dir.cleanup()

    def address(self, machine: int) -> str:
        """The address of a machine."""
        return f"10.77.0.{machine + 1}"

    def cut(self, machine: int) -> None:
        """Cut the link of a machine: nothing is refused, nothing arrives."""
        _ip("-n", self._switch, "link", "set", f"p{machine}", "down")

    def machine_of(self, rank: int) -> int:
        """The machine of a rank."""
        ends = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        return next(k for k, end in enumerate(ends) if rank < end)

    def prefix_of(self, rank: int) -> list[str]:
        """What starts a command on the machine of a rank."""
        return ["ip", "netns", "exec", self._names[self.machine_of(rank)]]

    def env_of(self, rank: int) -> dict[str, str]:
        """What the launcher of several machines gives a rank."""
        machine = self.machine_of(rank)
        return {
            "LOCAL_RANK": str(rank - sum(self.sizes[:machine])),
            "LOCAL_WORLD_SIZE": str(self.sizes[machine]),
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": str(PORT),
            "PACELINE_SECRET_FILE": str(self.secret),
        }

    def ranks(self, body: str, *, args: Mapping[str, Any] | None = None, **env: str) -> Ranks:
        """Start the ranks; a context, as ``harness.Ranks``."""
        return Ranks(
            self.world,
            body,
            args=args or {},
            env_of=lambda rank: {**self.env_of(rank), **env},
            prefix_of=self.prefix_of,
        )

    def run(self, body: str, *, timeout: float = 40.0, **args: Any) -> list[Result]:
        """Run a body on all ranks to its end; fails unless all end well."""
        with self.ranks(body, args=args) as ranks:
            ranks.wait(timeout)
            ranks.check()
            return [_result(rank) for rank in ranks.ranks]
