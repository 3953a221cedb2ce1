# SPDX-License-Identifier: Apache-2.0
"""Machines of the scaling part: network namespaces of tests/machines.py with a limited link.

Bandwidth is limited by the kernel's token bucket (``tc qdisc ... tbf``) on each machine's side.
Delay would be netem's work; where a kernel has none, a program carries the packets of tun devices
from machine to machine and holds each for so long (``benchmarks/carrier.py``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import package_path

BURST_BYTES = 96 << 10  # more than one packet as the kernel hands it on, less than a piece
MTU = 9000


class Unavailable(RuntimeError):
    """This machine cannot make such machines."""


@dataclass(frozen=True)
class Limits:
    """What a machine's link can: bits per second (0: whatever it can) and delay one way."""

    mbit: float = 0
    delay_ms: float = 0


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        raise Unavailable(f"[benchmarks] {words[0]} is missing: iproute2 brings it") from None
    if done.returncode:
        raise Unavailable(f"[benchmarks] {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def machines(count: int, limits: Limits) -> Iterator[Any]:
    """Yield `count` machines of one rank each, or raise `Unavailable`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        import pytest

        from machines import Net
    except ImportError as error:
        raise Unavailable(f"[benchmarks] the tests' machines cannot be used: {error}") from None
    net = Net((1,) * count)
    try:
        net.__enter__()
    except pytest.skip.Exception as error:
        raise Unavailable(f"[benchmarks] {error}") from None
    carrier = None
    try:
        if limits.delay_ms:
            carrier = _carried(net, limits)
        for name in net._names if limits.mbit else []:
            _run("tc", "-n", name, "qdisc", "add", "dev", "tun0" if carrier else "eth0", "root",
                 "tbf", "rate", f"{limits.mbit:g}mbit", "burst", str(BURST_BYTES),
                 "latency", "2s")  # fmt: skip
        yield net
    finally:
        if carrier is not None:
            carrier.kill()
            carrier.wait()
        net.__exit__()


def _carried(net: Any, limits: Limits) -> subprocess.Popen[str]:
    """Put a tun device with the machine's address in the place of its link."""
    for k, name in enumerate(net._names):
        _run("ip", "-n", name, "link", "set", "eth0", "down")
        _run("ip", "-n", name, "addr", "flush", "dev", "eth0")
        _run("ip", "-n", name, "tuntap", "add", "dev", "tun0", "mode", "tun")
        _run("ip", "-n", name, "addr", "add", f"{net.address(k)}/24", "dev", "tun0")
        _run("ip", "-n", name, "link", "set", "tun0", "mtu", str(MTU), "txqueuelen", "4000", "up")
    words = [sys.executable, "-m", "benchmarks.carrier", str(limits.delay_ms), *net._names]
    carrier = subprocess.Popen(words, stdout=subprocess.PIPE, text=True,
                               env={"PYTHONPATH": package_path()})  # fmt: skip
    assert carrier.stdout is not None
    if carrier.stdout.readline().strip() != "ready":
        raise Unavailable("[benchmarks] the program that carries packets did not start")
    return carrier
