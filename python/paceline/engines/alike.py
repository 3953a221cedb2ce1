# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""What engines share, because their libraries spell it alike: names of PyTorch's, here and there.

Knows no tensor library.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import LoaderParts, Order

__all__ = ["AlikeData", "AlikeModels", "AlikeStream"]


class AlikeStream:
    """Base of what makes a stream of another iterable, before a library's ``IterableDataset``.

    Parameters
    ----------
    samples : iterable
        What is read.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


class AlikeModels:
    """Base of engines; the methods are described in ``Engine`` by their names."""

    def signature(self, model: Any) -> list[tuple[str, tuple[int, ...], str, bool]]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return [
            (name, tuple(t.shape), str(t.dtype).rpartition(".")[2], bool(t.requires_grad))
            for name, t in named
        ]

    def has_float_buffers(self, model: Any) -> bool:
        return any(buffer.is_floating_point() for buffer in model.buffers())

    @staticmethod
    def _to_synchronise(model: Any, taken: set[int]) -> list[tuple[str, Any]]:
        """Give the trained parameters that no other model has taken, and take them."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        named = [(name, p) for name, p in trained if id(p) not in taken]
        taken.update(id(p) for _, p in named)
        return named


class AlikeData:
    """Base of engines; the methods are described in ``Engine`` by their names."""

    def _library(self) -> Any:
        """Give the module with the library's samplers."""
        raise NotImplementedError

    def loader_parts(self, loader: Any) -> LoaderParts:
        library, batch_sampler = self._library(), loader.batch_sampler
        own_batches = batch_sampler is not None and type(batch_sampler) is not library.BatchSampler
        sampler = loader.sampler
        if batch_sampler is not None and not own_batches:
            sampler = batch_sampler.sampler  # also where the script made the BatchSampler
        in_sampler = getattr(sampler, "generator", None)
        generator = in_sampler or getattr(loader, "generator", None)
        batch_size = loader.batch_size
        if batch_size is None and batch_sampler is not None:
            batch_size = getattr(batch_sampler, "batch_size", None)
        stream = batch_sampler is None and loader.drop_last
        return LoaderParts(
            dataset=loader.dataset,
            sampler=sampler,
            batch_sampler=batch_sampler,
            batch_size=batch_size,
            drop_last=bool(getattr(batch_sampler, "drop_last", stream)),
            order="custom" if own_batches else self._order(loader.dataset, sampler),
            own_batches=own_batches,
            seed=None if generator is None else generator.initial_seed(),
            generators=tuple(g for g in (in_sampler, loader.generator) if g is not None),
            plain=type(sampler) is library.DistributedSampler,
        )

    def batches_of(self, loader: Any) -> Iterator[Any]:
        return iter(loader)

    def _order(self, dataset: Any, sampler: Any) -> Order:
        library = self._library()
        if isinstance(dataset, library.IterableDataset):
            return "stream"
        if isinstance(sampler, library.DistributedSampler):
            return "distributed"
        if type(sampler) is library.SequentialSampler:
            return "sequential"
        plain = type(sampler) is library.RandomSampler and not sampler.replacement
        return "shuffled" if plain and len(sampler) == len(dataset) else "custom"

    def worker_info(self) -> tuple[int, int] | None:
        info = self._library().get_worker_info()
        return None if info is None else (info.id, info.num_workers)
