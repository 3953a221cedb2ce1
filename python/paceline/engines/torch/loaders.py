# SPDX-License-Identifier: Apache-2.0
"""Data loaders of PyTorch: taken apart for sharding, and put together over other batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils import data

from paceline import _C

from .. import LoaderParts, Order

__all__ = ["loader_parts", "with_batches", "with_samples"]


def loader_parts(loader: data.DataLoader[Any]) -> LoaderParts:
    """Take a loader apart for sharding."""
    batch_sampler: Any = loader.batch_sampler
    own_batches = batch_sampler is not None and type(batch_sampler) is not data.BatchSampler
    sampler: Any = loader.sampler
    if batch_sampler is not None and not own_batches:
        sampler = batch_sampler.sampler  # also where the script made the BatchSampler
    generator = getattr(sampler, "generator", None) or loader.generator
    batch_size = loader.batch_size
    if batch_size is None and batch_sampler is not None:
        batch_size = getattr(batch_sampler, "batch_size", None)
    return LoaderParts(
        dataset=loader.dataset,
        sampler=sampler,
        batch_sampler=batch_sampler,
        batch_size=batch_size,
        drop_last=bool(getattr(batch_sampler, "drop_last", False)),
        order="custom" if own_batches else _order(loader.dataset, sampler),
        own_batches=own_batches,
        seed=None if generator is None else generator.initial_seed(),
    )


def _order(dataset: Any, sampler: Any) -> Order:
    if isinstance(dataset, data.IterableDataset):
        return "stream"
    if isinstance(sampler, data.DistributedSampler):
        return "distributed"
    if type(sampler) is data.SequentialSampler:
        return "sequential"
    plain = type(sampler) is data.RandomSampler and not sampler.replacement
    return "shuffled" if plain and len(sampler) == len(dataset) else "custom"


def with_batches(loader: Any, batches: Iterable[Any]) -> Any:
    """Make a loader like this one over other batches."""
    return _changed(loader, batch_sampler=_Numbers(batches), batch_size=None, drop_last=False)


def with_samples(loader: Any, samples: Iterable[Any]) -> Any:
    """Make a loader like this one, which does not batch, over other samples."""
    return _changed(loader, sampler=_Numbers(samples), batch_sampler=None, batch_size=None)


def _changed(loader: Any, **changes: Any) -> Any:
    """Copy a loader with other attributes.

    A copy and not a new one: a subclass may have a constructor of its own, and what it added stays.
    """
    made = copy.copy(loader)
    # The class forbids this after its constructor, so that workers never see a change.
    made.__dict__.update(changes, _iterator=None)
    return made


class _Numbers:
    """Batches or samples as Python's integers, which any data set takes."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item.tolist() if isinstance(item, (_C.Tensor, torch.Tensor)) else item

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, name: str) -> Any:
        if name == "_items":  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self._items, name)
