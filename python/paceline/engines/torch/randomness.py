# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""The torch engine's part that has to do with random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from . import exchange

__all__ = ["TorchRandomness"]


class TorchRandomness:
    """Base of ``TorchEngine``; the methods are described in ``Engine`` by their names."""

    def initial_seed(self) -> int:
        return int(torch.initial_seed())

    def draw_seed(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_().item())

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def permutation(self, n: int, seed: int) -> Any:
        """Give the order in which Accelerate's seedable sampler, too, reads an epoch."""
        generator = torch.Generator().manual_seed(seed % 2**64)
        return exchange.to_core(torch.randperm(n, generator=generator))

    def rng_state(self) -> Any:
        own = exchange.to_core(torch.get_rng_state())
        if not torch.cuda.is_initialized():
            return own
        # Of the one GPU that this process uses.
        return {"cpu": own, "cuda": exchange.to_core(torch.cuda.get_rng_state())}

    def set_rng_state(self, state: Any) -> None:
        states = state if isinstance(state, dict) else {"cpu": state}
        try:
            torch.set_rng_state(exchange.from_core(states["cpu"]).clone())
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(exchange.from_core(states["cuda"]).clone())
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"[load_state] this is no state of torch's generator: {error}"
            ) from None

    def own_random(self, seed: int) -> Callable[[], AbstractContextManager[None]]:
        place = torch.Generator().manual_seed(seed % 2**64).get_state()

        @contextmanager
        def swapped() -> Iterator[None]:
            nonlocal place
            outside = torch.get_rng_state()
            torch.set_rng_state(place)
            try:
                yield
            finally:
                place = torch.get_rng_state()
                torch.set_rng_state(outside)

        return swapped

    def generator_state(self, generator: Any) -> list[int]:
        state: list[int] = generator.get_state().tolist()
        return state

    def set_generator_state(self, generator: Any, state: list[int]) -> None:
        generator.set_state(torch.tensor(list(state), dtype=torch.uint8))
