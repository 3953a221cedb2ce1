# SPDX-License-Identifier: Apache-2.0
"""Random numbers in worker processes.

Note [seeds of workers]: before each batch a worker seeds Python's ``random``, NumPy's global state
(where NumPy is loaded) and paceline's default generator from (base seed of the epoch, number of
the batch in the epoch). So what a data set draws depends neither on the number of workers nor on
which of them read the batch, and an epoch that is resumed at batch k draws what it would have.
``worker_init_fn`` and the start of a stream see seeds made of (base seed, worker's number).
"""

from __future__ import annotations

import random
import sys

from paceline import _C

_MASK = 2**64 - 1
_WORKER = 2**63  # keeps the numbers of workers apart from those of batches
_INT64 = 3


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbours become unrelated."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _seed_all(base: int, number: int) -> None:
    # Each library its own number: random and NumPy share an algorithm.
    root = _mix(_mix(base & _MASK) ^ number)
    random.seed(_mix(root ^ 1))
    _C.default_generator().seed = _mix(root ^ 2)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        word = _mix(root ^ 3)
        numpy.random.seed([word & 0xFFFFFFFF, word >> 32])


def seed_batch(base: int, batch: int) -> None:
    """Seed everything for one batch of an epoch."""
    _seed_all(base, batch)


def seed_worker(base: int, worker: int) -> None:
    """Seed everything for what a worker does before its first batch."""
    _seed_all(base, worker | _WORKER)


def draw_base_seed(generator: _C.Generator | None) -> int:
    """Draw the base seed of an epoch, from a loader's own or the default generator."""
    return int(_C.randint((), 0, 2**62, _INT64, generator).item())
