# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""The native engine's part that has to do with data loaders and the randomness of reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paceline import _C, dtypes
from paceline.random import default_generator, initial_seed

from .alike import AlikeData

if TYPE_CHECKING:
    from . import LoaderParts

__all__ = ["NativeData"]

_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


class NativeData(AlikeData):
    """Base of ``NativeEngine``; the methods are described in ``Engine`` by their names."""

    # --- random numbers -------------------------------------------------------------------------

    def initial_seed(self) -> int:
        return initial_seed()

    def draw_seed(self) -> int:
        """Draw a seed from the default generator."""
        return int(_C.randint((), 0, 2**62, dtypes.int64.code, None).item())

    def permutation(self, n: int, seed: int) -> _C.Tensor:
        """Give the permutation of 0..n-1 that belongs to a seed."""
        generator = type(default_generator)()
        generator.seed = seed % 2**64
        return _C.randperm(n, generator)

    def own_random(self, seed: int) -> Callable[[], AbstractContextManager[None]]:
        place = (seed % 2**64, 0)

        @contextmanager
        def swapped() -> Iterator[None]:
            nonlocal place
            outside = (default_generator.seed, default_generator.offset)
            default_generator.seed, default_generator.offset = place
            try:
                yield
            finally:
                place = (default_generator.seed, default_generator.offset)
                default_generator.seed, default_generator.offset = outside

        return swapped

    def generator_state(self, generator: Any) -> list[int]:
        state: list[int] = generator.get_state().tolist()
        return state

    def set_generator_state(self, generator: Any, state: list[int]) -> None:
        generator.set_state(_C.from_data(list(state), dtypes.uint8.code))

    # --- data loaders ---------------------------------------------------------------------------

    def _library(self) -> Any:
        from paceline.utils import data

        return data

    def loader_parts(self, loader: Any) -> LoaderParts:
        from paceline.utils.data.collate import default_collate

        fresh = loader.pin_memory and loader.collate_fn is default_collate
        return replace(super().loader_parts(loader), pins=bool(fresh))

    def with_batches(self, loader: Any, batches: Iterable[Any]) -> Any:
        """Make a loader like this one over other batches."""
        return type(loader)(loader.dataset, batch_sampler=batches, **_options(loader))

    def with_samples(self, loader: Any, samples: Iterable[Any]) -> Any:
        """Make a loader like this one, which does not batch, over other samples."""
        return type(loader)(loader.dataset, batch_size=None, sampler=samples, **_options(loader))

    def with_stream(
        self, loader: Any, samples: Iterable[Any], batch_size: int | None, collate: Any
    ) -> Any:
        """Make a loader like this one over another stream."""
        from .native_stream import Stream

        options = {**_options(loader), "collate_fn": collate}
        return type(loader)(Stream(samples), batch_size=batch_size, **options)

    def start_epoch(self, loader: Any, first_batch: int, seed: int | None) -> None:
        number = getattr(loader, "_number_from", None)
        if number is not None:
            number(first_batch, seed)


def _options(loader: Any) -> dict[str, Any]:
    """Give what a new loader over the same data set takes over."""
    return {name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)}
