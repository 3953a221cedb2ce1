# SPDX-License-Identifier: Apache-2.0
"""DataLoader: batches of a data set, with PyTorch's arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from paceline import _C
from paceline.utils.data.collate import Collate, default_collate, default_convert
from paceline.utils.data.dataset import IterableDataset
from paceline.utils.data.fetch import batch_reader
from paceline.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler


class DataLoader:
    """Batches of a data set.

    Parameters
    ----------
    dataset : Dataset, sequence, Tensor or array
        What is read; anything with ``__getitem__`` and ``__len__``, or an `IterableDataset`.
    batch_size : int, optional
        Samples per batch; None gives single samples.
    shuffle : bool, optional
        Whether every epoch has a new random order.
    sampler : iterable of int, optional
        The order; excludes `shuffle`.
    batch_sampler : iterable, optional
        Gives the indices of whole batches, as lists or int64 tensors; excludes the four above and
        `drop_last`.
    num_workers : int
        0: reading happens in this process. Worker processes are not built yet.
    collate_fn : callable, optional
        Makes a batch from a list of samples; `default_collate` by default.
    pin_memory : bool
        Accepted; has no effect without a GPU.
    drop_last : bool
        Leave out a last batch that is not full.
    timeout : float
        For workers; 0 only.
    worker_init_fn, multiprocessing_context : optional
        For workers; accepted.
    generator : Generator, optional
        Where `shuffle` takes its order from.
    prefetch_factor, persistent_workers : optional
        For workers; an error without them, as in PyTorch.
    pin_memory_device : str
        Accepted.
    in_order : bool
        Accepted.

    Raises
    ------
    NotImplementedError
        If `num_workers` is not 0.
    ValueError
        If arguments exclude each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: _C.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        _check_workers(num_workers, prefetch_factor, persistent_workers, timeout)
        stream = isinstance(dataset, IterableDataset)
        _check_order(stream, batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator
        self.persistent_workers = persistent_workers
        self.in_order = in_order
        self.drop_last = drop_last
        self.batch_size = batch_size if batch_sampler is None else None
        if stream:
            sampler = None
        elif sampler is None and shuffle:
            sampler = RandomSampler(dataset, generator=generator)
        elif sampler is None:
            sampler = SequentialSampler(dataset)
        if self.batch_size is not None and not stream:
            batch_sampler = BatchSampler(sampler, self.batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        batched = batch_sampler is not None or self.batch_size is not None
        self.collate_fn = collate_fn or (default_collate if batched else default_convert)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            return self._iter_stream()
        if self.batch_sampler is None:
            return self._iter_samples()
        return self._iter_batches()

    def _iter_batches(self) -> Iterator[Any]:
        batches = self.batch_sampler
        if type(batches) is BatchSampler:
            batches = batches.index_batches()
        read = batch_reader(self.dataset, self.collate_fn)
        for indices in batches:
            yield read(indices)

    def _iter_samples(self) -> Iterator[Any]:
        for index in self.sampler:
            yield self.collate_fn(self.dataset[index])

    def _iter_stream(self) -> Iterator[Any]:
        samples = iter(self.dataset)
        if self.batch_size is None:
            for sample in samples:
                yield self.collate_fn(sample)
            return
        while batch := list(itertools.islice(samples, self.batch_size)):
            if len(batch) < self.batch_size and self.drop_last:
                return
            yield self.collate_fn(batch)

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            n = len(self.dataset)  # type: ignore[arg-type]  # a stream may know its length
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self.sampler if self.batch_sampler is None else self.batch_sampler)


def _check_workers(
    num_workers: int, prefetch_factor: int | None, persistent_workers: bool, timeout: float
) -> None:
    if num_workers < 0:
        raise ValueError(
            "num_workers option should be non-negative; use num_workers=0 to disable "
            "multiprocessing."
        )
    if num_workers > 0:
        raise NotImplementedError(
            f"[DataLoader] worker processes are not built yet: got num_workers={num_workers}, "
            "expected num_workers=0 (tensors and arrays are batched by one call, without workers)"
        )
    if prefetch_factor is not None:
        raise ValueError(
            "prefetch_factor option could only be specified in multiprocessing. "
            "Let num_workers > 0 to enable multiprocessing, otherwise set prefetch_factor to None."
        )
    if persistent_workers:
        raise ValueError("persistent_workers option needs num_workers > 0")
    if timeout < 0:
        raise ValueError("timeout option should be non-negative")


def _check_order(
    stream: bool,
    batch_size: int | None,
    shuffle: bool | None,
    sampler: Any,
    batch_sampler: Any,
    drop_last: bool,
) -> None:
    if stream:
        for name, value in (
            ("shuffle", shuffle or None),
            ("sampler", sampler),
            ("batch_sampler", batch_sampler),
        ):
            if value is not None:
                raise ValueError(
                    "DataLoader with IterableDataset: expected unspecified "
                    f"{name} option, but got {name}={value}"
                )
    if sampler is not None and shuffle:
        raise ValueError("sampler option is mutually exclusive with shuffle")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ValueError(
                "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, "
                "and drop_last"
            )
    elif batch_size is None:
        if drop_last:
            raise ValueError(
                "batch_size=None option disables auto-batching and is mutually exclusive with "
                "drop_last"
            )
    elif not isinstance(batch_size, int) or batch_size <= 0:
        raise ValueError(
            f"batch_size should be a positive integer value, but got batch_size={batch_size}"
        )
