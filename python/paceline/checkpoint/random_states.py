# SPDX-License-Identifier: Apache-2.0
"""Random states of this process: Python's, NumPy's if it is loaded, and every engine's."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import serialization
from .._tensor import raw_memory
from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..engines import Engine

__all__ = ["capture", "names", "restore", "restore_elsewhere"]


def capture(engines: Sequence[Engine]) -> dict[str, Any]:
    """Give all random states of this process, as what a file can hold."""
    found: dict[str, Any] = {"python": random.getstate(), "numpy": None}
    numpy = _numpy()
    if numpy is not None:
        kind, keys, *rest = numpy.get_state()
        found["numpy"] = [kind, keys.tolist(), *rest]
    found["engines"] = {engine.name: engine.rng_state() for engine in engines}
    return found


def _numpy() -> Any:
    # Only what the program has imported already: a state that nothing draws from is none.
    return sys.modules.get("numpy.random")


def names(saved: Any) -> list[str]:
    """Give the names of the engines whose states were saved."""
    states = saved.get("engines") if isinstance(saved, dict) else None
    return list(states) if isinstance(states, dict) else []


def restore(saved: Any, engines: Sequence[Engine], derive: bool = False) -> None:
    """Go on from what ``capture`` gave.

    Parameters
    ----------
    saved : object
        Comes from a file: it is not trusted.
    engines : sequence of Engine
        Whose generators to set.
    derive : bool
        Seed an engine whose state was not saved from those that were, instead of refusing.

    Raises
    ------
    CheckpointError
        If a state is missing or is none.
    """
    if not isinstance(saved, dict) or not {"python", "numpy", "engines"} <= saved.keys():
        raise CheckpointError("[load_state] random state is missing")
    try:
        states = dict(saved["engines"])
        missing = [engine for engine in engines if engine.name not in states]
        if missing and not derive:
            names = ", ".join(engine.name for engine in missing)
            raise CheckpointError(f"[load_state] random state is missing: that of {names}")
        random.setstate(saved["python"])
        if saved["numpy"] is not None:
            import numpy

            kind, keys, *rest = saved["numpy"]
            state = (kind, numpy.asarray(keys, numpy.uint32), *rest)
            numpy.random.set_state(state)  # noqa: NPY002 (the generator that scripts seed)
        for engine in engines:
            if engine.name in states:
                engine.set_rng_state(states[engine.name])
        for engine in missing:
            engine.seed(_seed(_fingerprint(saved)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"[load_state] random state is damaged: {error}") from error


def _seed(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1


def restore_elsewhere(
    saved: Sequence[Any], rank: int, engines: Sequence[Engine], derive: bool = False
) -> None:
    """Give a rank that the saved run did not have a random state that follows from rank 0's.

    Where all ranks drew the same numbers, the new one draws them too; else it gets a stream of its
    own. A rank that was there before goes on with its own state.

    Parameters
    ----------
    saved : sequence
        What ``capture`` gave on each rank of the saved run.
    rank : int
        This process.
    engines, derive
        As for ``restore``.
    """
    if rank < len(saved):
        restore(saved[rank], engines, derive)
        return
    prints = [_fingerprint(state) for state in saved]
    restore(saved[0], engines, derive)
    if len(saved) > 1 and len(set(prints)) == 1:
        return
    seed = _seed(prints[0] + rank.to_bytes(8, "little"))
    random.seed(seed)
    numpy = _numpy()
    if numpy is not None:
        numpy.seed(seed % 2**32)
    for engine in engines:
        engine.seed(seed)


def _fingerprint(state: Any) -> bytes:
    tensors, metadata = serialization.take_apart(state, lambda obj: None)
    running = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        running.update(raw_memory(tensors[name]))
    return running.digest()
