# SPDX-License-Identifier: Apache-2.0
"""Data sets that are arrays: a batch is one gather in C, with no Python per sample.

`Rows` gives what ``default_collate`` would make of the samples, bit for bit, and applies only where
that is certain: exact types, no gradient, a dtype that tensors have.

Note [reading ahead]: a batch may be gathered by a thread before its turn only if nobody can tell.
So the order must be fixed at the start of the epoch, and a change of the data must be noticed:
tensors count their changes, and what was read before one is read again; arrays of NumPy's do not
count, so only those that are read-only are read ahead. A write to a tensor's memory through
``tensor.numpy()`` in the middle of an epoch may be missed by the next two batches. And it must
pay: where loops leave no processor idle, the thread would take one from the training, and a
gather on all threads at the batch's turn is quicker; unless it is a disk that is waited for.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from paceline import _C
from paceline.utils.data.collate import Collate, default_collate
from paceline.utils.data.dataset import ArrayDataset, Subset, TensorDataset

_I64 = 3
_AHEAD = 2  # batches
_WORTH_IT = 1 << 16  # bytes of a batch; below, waking a thread costs more than the gather


class Rows:
    """Reads batches of rows.

    Parameters
    ----------
    columns : list
        Tensors or arrays of one length.
    single : bool
        Whether a sample is the row itself, and not a tuple of one row of each.
    """

    def __init__(self, columns: list[Any], single: bool) -> None:
        self._single = single
        self._chosen: list[_C.Tensor] = []  # of Subsets, outermost first
        #: Whether no file stands behind a column: reading a row never waits for a disk.
        self.in_memory = all(type(c).__name__ != "memmap" for c in columns)
        self._tensors = [c for c in columns if isinstance(c, _C.Tensor)]
        plain = all(map(_is_plain, self._tensors))
        if not plain and len(self._tensors) < len(columns):
            raise TypeError("arrays beside tensors that need an operator of their own")
        # Detached: memory that a later `tensor.data = ...` cannot take away.
        sources = [_C.detach(c) if isinstance(c, _C.Tensor) else c for c in columns]
        self._gather = _C.row_gather([(c, c.shape) for c in sources]) if plain else None

    def within(self, indices: Any) -> Rows:
        """Read rows of a subset: `indices` says which they are."""
        self._chosen.insert(0, _C.from_data([int(i) for i in indices], _I64))
        return self

    def _index(self, indices: Any) -> _C.Tensor:
        index: _C.Tensor = indices
        if not isinstance(index, _C.Tensor):
            index = _C.from_data([int(i) for i in indices], _I64)
        for chosen in self._chosen:
            index = _C.index_select(chosen, 0, index)
        return index

    def _batch(self, columns: list[Any]) -> Any:
        return columns[0] if self._single else columns

    def read(self, indices: Any) -> Any:
        """Gather a batch now; `indices` is a list or an int64 tensor."""
        return self.read_again(self._index(indices))

    def read_again(self, index: _C.Tensor) -> Any:
        """Gather the batch of an index that `ask` gave."""
        if self._gather is None:
            return self._batch([_select(t, index) for t in self._tensors])
        return self._batch(self._gather.gather(index))

    def _worth_it(self, batch: Any) -> bool:
        gather = self._gather
        if gather is None or not gather.is_stable or len(batch) * gather.row_bytes < _WORTH_IT:
            return False
        return not self.in_memory or _has_idle_processor()

    def read_all(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Gather batches, ahead of their turn where that pays; their order must be fixed."""
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            return iter(())
        all_of_them = itertools.chain([first], rest)
        if not self._worth_it(first):
            return map(self.read, all_of_them)
        return _Ahead(self, all_of_them)

    def versions(self) -> list[int]:
        """Give what changes when a tensor does."""
        return [t._version for t in self._tensors]

    def ask(self, indices: Any) -> _C.Tensor:
        """Have a batch gathered; gives its index."""
        assert self._gather is not None
        index = self._index(indices)
        self._gather.ask(index)
        return index

    def take(self) -> Any:
        """Give the oldest batch asked for."""
        assert self._gather is not None
        return self._batch(self._gather.take())


def _has_idle_processor() -> bool:
    """Whether loops leave one of this rank's processors idle."""
    processors = len(os.sched_getaffinity(0))
    if processors == os.cpu_count():  # nobody has cut the machine into parts
        processors //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return _C.get_num_threads() < processors


def _is_plain(t: _C.Tensor) -> bool:
    return t._is_contiguous() and not t.requires_grad and t._device_index < 0


def _select(t: _C.Tensor, index: _C.Tensor) -> _C.Tensor:
    return _C.index_select(t, 0, _C.to_device(index, t._device_index, False))


class _Ahead:
    """The batches of an epoch, gathered ahead; an iterator that goes on after an error."""

    def __init__(self, rows: Rows, batches: Iterator[Any]) -> None:
        self._rows = rows
        self._batches = batches
        # Asked for and not given yet: (index, versions when asked), or the error of asking.
        self._waiting: deque[tuple[_C.Tensor, list[int]] | Exception] = deque()
        self._asked_all = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while len(self._waiting) <= _AHEAD and not self._asked_all:
            self._ask_next()
        if not self._waiting:
            raise StopIteration
        head = self._waiting.popleft()
        if isinstance(head, Exception):
            raise head
        index, versions = head
        batch = self._rows.take()
        return batch if versions == self._rows.versions() else self._rows.read_again(index)

    def _ask_next(self) -> None:
        versions = self._rows.versions()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._asked_all = True
            return
        except Exception as error:  # it is raised when its batch has its turn
            self._asked_all = True
            self._waiting.append(error)
            return
        try:
            self._waiting.append((self._rows.ask(batch), versions))
        except Exception as error:
            self._waiting.append(error)


def rows_of(dataset: Any, collate: Collate) -> Rows | None:
    """Give the `Rows` that batch `dataset` as `collate` would, or None."""
    if collate is not default_collate:
        return None
    try:
        return _rows_of(dataset)
    except (TypeError, ValueError, BufferError):
        return None  # a dtype or a layout that tensors have not


def _rows_of(dataset: Any) -> Rows | None:
    if type(dataset) in (TensorDataset, ArrayDataset):
        columns = dataset.tensors if type(dataset) is TensorDataset else dataset.arrays
        return Rows(list(columns), False) if columns and all(map(_is_rows, columns)) else None
    if type(dataset) is Subset:
        inner = _rows_of(dataset.dataset)
        return None if inner is None else inner.within(dataset.indices)
    return Rows([dataset], True) if _is_rows(dataset) else None


def _is_rows(value: Any) -> bool:
    if isinstance(value, _C.Tensor):
        return bool(value.ndim)
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) in (numpy.ndarray, numpy.memmap) and value.ndim > 0
