# SPDX-License-Identifier: Apache-2.0
"""DataLoader: batches of a data set, with PyTorch's arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from paceline import _C, cuda
from paceline.utils.data.checks import (
    check_order,
    check_workers,
    start_method,
    warn_of_many_workers,
)
from paceline.utils.data.collate import Collate, default_collate, default_convert
from paceline.utils.data.dataset import IterableDataset
from paceline.utils.data.fetch import StreamReader, reader, sample_reader
from paceline.utils.data.pinning import pin_all
from paceline.utils.data.rows import Rows, rows_of
from paceline.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler
from paceline.utils.data.seeding import draw_base_seed

_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


class DataLoader:
    """Batches of a data set.

    Data that lies in tensors, NumPy arrays or memory maps is gathered by one C call per batch,
    large batches ahead of their turn (Note [reading ahead], ``rows.py``). Where such data is in
    memory, batches are the default ones and there is no `worker_init_fn`, nothing is left for
    workers to do: none is started, whatever `num_workers` says.

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
        Gives the indices of whole batches, as lists or int64 tensors; excludes the three above and
        `drop_last`.
    num_workers : int
        Processes that read; 0: this one does. For arrays in memory this one always does.
    collate_fn : callable, optional
        Makes a batch from a list of samples; `default_collate` by default.
    pin_memory : bool
        Give batches in page-locked memory, from which ``.to("cuda", non_blocking=True)`` need not
        wait; no effect without a GPU. What `prepare` gave pins by itself.
    drop_last : bool
        Leave out a last batch that is not full.
    timeout : float
        Seconds to wait for a batch of a worker, then RuntimeError says where it is; 0: no limit,
        but a warning that says so after 300 s.
    worker_init_fn : callable, optional
        Called once in each worker with its number.
    multiprocessing_context : str or context, optional
        How workers start: ``"fork"``, ``"spawn"``, ``"forkserver"``. By default what
        ``multiprocessing.set_start_method`` chose, else fork.
    generator : Generator, optional
        Where `shuffle` and the seeds of workers come from.
    prefetch_factor : int, optional
        Batches that each worker may be ahead; 2 by default.
    persistent_workers : bool
        Keep the workers from one epoch to the next.
    pin_memory_device : str
        Accepted.
    in_order : bool
        Hand batches out in their order; False: in that of their being ready.

    Raises
    ------
    ValueError
        If arguments exclude each other.

    Notes
    -----
    In a worker, Python's ``random``, NumPy's global state and paceline's default generator are
    seeded before each batch from (base seed of the epoch, number of the batch), so that results do
    not depend on the number of workers (Note [seeds of workers], ``seeding.py``). An exception in a
    worker is raised here with its class and its traceback as text; a worker that is killed is a
    RuntimeError that names it, its pid and the signal.
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
        check_workers(num_workers, prefetch_factor, persistent_workers, timeout)
        stream = isinstance(dataset, IterableDataset)
        check_order(stream, batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = 2 if num_workers > 0 and prefetch_factor is None else prefetch_factor
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
        if sampler is None and not stream:
            shuffled = bool(shuffle)
            sampler = RandomSampler(dataset, generator=generator) if shuffled else None
            sampler = sampler or SequentialSampler(dataset)
        if self.batch_size is not None and not stream:
            batch_sampler = BatchSampler(sampler, self.batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        convert = default_collate if self._auto_collation else default_convert
        self.collate_fn = convert if collate_fn is None else collate_fn
        self._iterator: Any = None  # of persistent workers
        self._told_length: int | None = None
        self._numbering: tuple[int, int | None] = (0, None)
        warn_of_many_workers(num_workers)
        self._initialized = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and "_initialized" in self.__dict__:
            raise ValueError(
                f"{name} attribute should not be set after {type(self).__name__} is initialized"
            )
        super().__setattr__(name, value)

    @property
    def multiprocessing_context(self) -> Any:
        """How workers are started; None: the default."""
        return self._context

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        self._context = start_method(context, self.num_workers)

    @property
    def _is_stream(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    @property
    def _auto_collation(self) -> bool:
        return self.batch_size is not None or self.batch_sampler is not None

    @property
    def _index_sampler(self) -> Any:
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def _number_from(self, first_batch: int, base_seed: int | None = None) -> None:
        """Number the next iteration's batches from `first_batch`, for the seeds in workers.

        For who resumes an epoch: the batch sampler begins at that batch, and the base seed is the
        one of the epoch; None draws a new one. Holds for one iteration.
        """
        self._numbering = (first_batch, base_seed)

    def __iter__(self) -> Iterator[Any]:
        first, base_seed = self._numbering
        self._numbering = (0, None)
        if base_seed is None:
            base_seed = draw_base_seed(self.generator)
        rows = None
        if self.batch_sampler is not None:
            rows = rows_of(self.dataset, self.collate_fn)
        if self.num_workers == 0 or self._is_quicker_here(rows):
            batches = self._iter_here(rows)
        else:
            batches = self._workers(first, base_seed)
        if self.pin_memory and cuda.is_available():
            batches = pin_all(batches)
        told = self._told_length
        return batches if told is None else _Counted(batches, self.dataset, told)

    def _is_quicker_here(self, rows: Rows | None) -> bool:
        """Whether the data are arrays in memory, of which nothing is to be done in a worker."""
        return rows is not None and rows.in_memory and self.worker_init_fn is None

    def _iter_here(self, rows: Rows | None) -> Iterator[Any]:
        # Iterators and no generators: as in PyTorch, one can go on after an exception.
        if self._is_stream:
            size, drop_last = self.batch_size, self.drop_last
            return iter(StreamReader(self.dataset, self.collate_fn, size, drop_last))
        if self.batch_sampler is None:
            return map(reader(self.dataset, self.collate_fn, False), self.sampler)
        batches, order_is_fixed = self._index_batches()
        if rows is None:
            return map(sample_reader(self.dataset, self.collate_fn), batches)
        return rows.read_all(batches) if order_is_fixed else map(rows.read, batches)

    def _index_batches(self) -> tuple[Iterable[Any], bool]:
        """Give the indices of the batches, and whether nothing can change them once begun."""
        batches = self.batch_sampler
        if type(batches) is BatchSampler:
            cut = batches.index_batches()
            return cut, cut is not batches
        return batches, getattr(batches, "order_is_fixed", False)

    def _index_source(self) -> Iterable[Any]:
        return self.sampler if self.batch_sampler is None else self._index_batches()[0]

    def _workers(self, first_batch: int, base_seed: int) -> Any:
        from paceline.utils.data.parallel import ParallelIterator

        if self._iterator is not None and self._iterator.usable:
            self._iterator.next_epoch(self, first_batch, base_seed)
            return self._iterator
        iterator = ParallelIterator(self, self._start_context(), first_batch, base_seed)
        self._iterator = iterator if self.persistent_workers else None
        return iterator

    def _start_context(self) -> Any:
        import multiprocessing

        if self._context is not None:
            return self._context
        chosen = multiprocessing.get_start_method(allow_none=True)
        return multiprocessing.get_context(chosen or "fork")

    def __len__(self) -> int:
        if not self._is_stream:
            return len(self._index_sampler)
        n = len(self.dataset)
        if self.batch_size is not None:
            n = n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        self._told_length = n
        return n


class _Counted:
    """Warns where a stream gives more than its length said, as PyTorch does."""

    def __init__(self, batches: Iterator[Any], dataset: Any, told: int) -> None:
        self._batches, self._dataset, self._told = batches, dataset, told
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._given += 1
        if self._given == self._told + 1:
            warnings.warn(
                f"Length of IterableDataset {self._dataset} was reported to be {self._told} (when "
                f"accessing len(dataloader)), but {self._given} samples have been fetched. For "
                "multiprocessing data-loading, this could be caused by not properly configuring "
                "the IterableDataset replica at each worker.",
                stacklevel=2,
            )
        return batch
