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
    from ..engines import Engine, LoaderParts

__all__ = ["Generators", "ReadingRandom"]


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


class Generators:
    """The random generators that loader, sampler and data set were given: part of a place."""

    def __init__(self, engine: Engine, parts: LoaderParts) -> None:
        self._engine = engine
        in_data = getattr(parts.dataset, "generator", None)
        own = [in_data] if hasattr(in_data, "manual_seed") else []  # not one of NumPy
        unique = {id(generator): generator for generator in [*parts.generators, *own]}
        self._all = list(unique.values())

    def states(self) -> list[list[int]]:
        return [self._engine.generator_state(generator) for generator in self._all]

    def restore(self, states: list[list[int]] | None) -> None:
        for generator, state in zip(self._all, states or (), strict=False):
            self._engine.set_generator_state(generator, state)
