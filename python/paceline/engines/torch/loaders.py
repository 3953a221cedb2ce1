# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""Data loaders of PyTorch: taken apart for sharding, and put together over other batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils import data

from ..alike import AlikeData, AlikeStream
from .rows import batches_of
from .workers import Numbers, WorkerStart

__all__ = ["TorchData"]


class TorchData(AlikeData):
    """Base of ``TorchEngine``; the methods are described in ``Engine`` by their names."""

    def _library(self) -> Any:
        return data

    def with_batches(self, loader: Any, batches: Iterable[Any]) -> Any:
        return _changed(loader, batch_sampler=Numbers(batches), batch_size=None, drop_last=False)

    def with_samples(self, loader: Any, samples: Iterable[Any]) -> Any:
        return _changed(loader, sampler=Numbers(samples), batch_sampler=None, batch_size=None)

    def with_stream(
        self, loader: Any, samples: Iterable[Any], batch_size: int | None, collate: Any
    ) -> Any:
        # Made as a loader of its own first: its constructor knows how streams are batched.
        plain = data.DataLoader(Stream(samples), batch_size=batch_size, collate_fn=collate)
        names = ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "collate_fn",
                 "_dataset_kind")  # fmt: skip
        return _changed(loader, **{name: getattr(plain, name) for name in names})

    def batches_of(self, loader: Any) -> Iterator[Any]:
        return batches_of(loader)

    def start_epoch(self, loader: Any, first_batch: int, seed: int | None) -> None:
        if seed is None or not isinstance(loader, data.DataLoader):
            return
        # What making an iterator draws: so that the default generator stays where it was.
        loader.generator = torch.Generator().manual_seed(seed % 2**64)
        batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if isinstance(batches, Numbers):
            batches.first = first_batch
            batches.seed = seed if loader.num_workers > 0 else None


class Stream(AlikeStream, data.IterableDataset[Any]):
    """Another iterable as a stream; at top level, so that it pickles."""


def _changed(loader: Any, **changes: Any) -> Any:
    """Copy a loader with other attributes.

    A copy and not a new one: a subclass may have a constructor of its own, and what it added stays.
    """
    made = copy.copy(loader)
    # The class forbids this after its constructor, so that workers never see a change.
    made.__dict__.update(changes, _iterator=None)
    if made.num_workers > 0 and not isinstance(made.worker_init_fn, WorkerStart):
        made.worker_init_fn = WorkerStart(made.worker_init_fn)
    return made
