# SPDX-License-Identifier: Apache-2.0
"""A random stream for reading alone, so that a stream of data can be read again to the same bits.

Between two batches of a stream the training draws random numbers too. Had both one generator,
reading up to a place again would need every state in between; with one of its own the seed of
the epoch is enough, and all ranks read the same where they must.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engines import Engine

__all__ = ["ReadingRandom"]


class ReadingRandom:
    """Random state of reading: the engine's, Python's, and NumPy's where it is loaded.

    Parameters
    ----------
    engine : Engine
        Whose generators.
    seed : int
        Where it starts.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine_random = engine.own_random(seed)
        self._python: Any = random.Random(seed).getstate()
        self._seed = seed
        self._numpy: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Give a block in which random numbers come from this stream."""
        numpy = sys.modules.get("numpy.random")
        outside = random.getstate()
        outside_numpy = numpy.get_state() if numpy is not None else None
        random.setstate(self._python)
        if numpy is not None and self._numpy is None:
            numpy.seed(self._seed % 2**32)
        elif numpy is not None:
            numpy.set_state(self._numpy)
        try:
            with self._engine_random():
                yield
        finally:
            self._python = random.getstate()
            random.setstate(outside)
            if numpy is not None:
                self._numpy = numpy.get_state()
                numpy.set_state(outside_numpy)
