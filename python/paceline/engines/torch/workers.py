# SPDX-License-Identifier: Apache-2.0
"""Workers of torch's loaders, seeded for each batch as ours are (Note [seeds of workers]).

A batch of indices carries the epoch's seed and its own number to whichever worker reads it, so that
an epoch that is taken up in its middle draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from paceline import _C

__all__ = ["Numbers", "WorkerStart"]


class _Batch(list[Any]):
    """Indices of a batch."""

    seeds: tuple[int, int]  # seed of the epoch, number of the batch


class _Sample(int):
    """Index of a sample that is read by itself."""

    seeds: tuple[int, int]


class Numbers:
    """Batches or samples as Python's integers, which any data set takes.

    Parameters
    ----------
    items : iterable
        int64 tensors or lists, or single indices.
    """

    def __init__(self, items: Any) -> None:
        self._items = items
        self.first = 0  # number of the first batch that the next iteration reads
        self.seed: int | None = None  # of the epoch; None where workers seed themselves

    def __iter__(self) -> Iterator[Any]:
        seed = self.seed
        for number, item in enumerate(self._items, self.first):
            plain = item.tolist() if isinstance(item, (_C.Tensor, torch.Tensor)) else item
            if seed is not None:
                plain = _marked(plain, seed, number)
            yield plain

    def as_given(self) -> Iterator[Any]:
        """Iterate the items as they are, for who takes the core's tensors."""
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, name: str) -> Any:
        if name == "_items":  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self._items, name)


def _marked(item: Any, seed: int, number: int) -> Any:
    made: _Batch | _Sample
    if type(item) is list:
        made = _Batch(item)
    elif type(item) is int:
        made = _Sample(item)
    else:
        return item
    made.seeds = (seed, number)
    return made


class WorkerStart:
    """What a worker calls first: the script's ``worker_init_fn``, then it learns to seed batches.

    Parameters
    ----------
    init_fn : callable or None
        The script's.
    """

    def __init__(self, init_fn: Callable[[int], Any] | None) -> None:
        self.init_fn = init_fn

    def __call__(self, worker_id: int) -> None:
        """Prepare one worker; it runs in that worker's process and changes nothing elsewhere."""
        if self.init_fn is not None:
            self.init_fn(worker_id)
        from torch.utils.data._utils import fetch

        fetcher: Any = fetch._MapDatasetFetcher
        read = fetcher.fetch

        def seeded(self: Any, index: Any) -> Any:
            seeds = getattr(index, "seeds", None)
            if seeds is not None:
                _seed(*seeds)
            return read(self, index)

        fetcher.fetch = seeded


def _seed(epoch: int, batch: int) -> None:
    from paceline.utils.data.seeding import seed_batch

    seed_batch(epoch, batch)
    torch.manual_seed(_C.default_generator().seed)
