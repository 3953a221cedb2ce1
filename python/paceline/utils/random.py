# SPDX-License-Identifier: Apache-2.0
"""Seeding everything that draws random numbers, and giving all processes rank 0's state."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

from ..state import PartialState
from .dataclasses import RNGType
from .operations import broadcast_object_list

__all__ = ["set_seed", "synchronize_rng_state", "synchronize_rng_states"]


def set_seed(seed: int, device_specific: bool = False, deterministic: bool = False) -> None:
    """Seed Python's ``random``, paceline, and NumPy and PyTorch where they are loaded.

    Parameters
    ----------
    seed : int
        The seed.
    device_specific : bool
        Add the rank, so that every process draws something else.
    deterministic : bool
        Ask PyTorch, where it is loaded, for deterministic algorithms. paceline's own results never
        depend on timing.
    """
    if device_specific:
        seed += PartialState().process_index
    from paceline.random import manual_seed

    random.seed(seed)
    manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    # `import paceline as torch` may have put us there under that name.
    if torch is not None and torch.__name__ == "torch":
        torch.manual_seed(seed)
        if deterministic:
            torch.use_deterministic_algorithms(True)


def synchronize_rng_state(
    rng_type: RNGType | str | None = None, generator: Any | None = None
) -> None:
    """Give all processes rank 0's state of one random generator; call it on all of them.

    Parameters
    ----------
    rng_type : {"torch", "generator", "cuda"}, optional
        The library's default generator, or ``generator``, or that of the CUDA device.
    generator : Generator, optional
        For ``"generator"``.

    Raises
    ------
    ValueError
        For another kind, or ``"generator"`` without one.
    """
    from ..engines import loaded_engines

    kind = RNGType(rng_type) if rng_type is not None else RNGType.TORCH
    if kind is RNGType.GENERATOR and generator is None:
        raise ValueError("[synchronize_rng_state] 'generator' needs a generator: got None")
    if kind is RNGType.CUDA and not str(PartialState().device).startswith("cuda"):
        raise ValueError("[synchronize_rng_state] 'cuda' needs a CUDA device: this is the CPU")
    own = generator if kind is RNGType.GENERATOR else None
    engines = loaded_engines() if own is None else ()
    # By name: a rank where another library is loaded, too, leaves that one as it is.
    state = [{e.name: e.rng_state() for e in engines} if own is None else own.get_state()]
    broadcast_object_list(state, from_process=0)
    if own is not None:
        own.set_state(state[0])
    for engine in engines:
        if engine.name in state[0]:
            engine.set_rng_state(state[0][engine.name])


def synchronize_rng_states(
    rng_types: Iterable[RNGType | str], generator: Any | None = None
) -> None:
    """Give all processes rank 0's state of several random generators; call it on all of them."""
    for rng_type in rng_types:
        synchronize_rng_state(rng_type, generator)
