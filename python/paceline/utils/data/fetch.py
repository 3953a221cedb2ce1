# SPDX-License-Identifier: Apache-2.0
"""From the indices of a batch to the batch, sample by sample; and batches of a stream.

What lies in arrays is read in ``rows.py``. Used by the loader's own process and by workers alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from paceline import _C
from paceline.utils.data.collate import Collate
from paceline.utils.data.rows import Rows, rows_of

Reader = Callable[[Any], Any]

#: What `StreamReader` gives when there is no further batch.
END = object()


def reader(dataset: Any, collate: Collate, batched: bool) -> Reader:
    """Make a function from the indices of a batch (or one index) to the batch (or the sample)."""
    if not batched:
        return lambda index: collate(dataset[index])
    rows = rows_of(dataset, collate)
    return rows.read if rows is not None else sample_reader(dataset, collate)


def sample_reader(dataset: Any, collate: Collate) -> Reader:
    """Make a function that reads the samples of a batch one by one, or by ``__getitems__``."""
    several = getattr(dataset, "__getitems__", None)
    if callable(several):
        return lambda indices: collate(several(as_list(indices)))
    return lambda indices: collate(_samples(dataset, as_list(indices)))


def as_list(indices: Any) -> Any:
    """Give the indices of a batch as Python's integers where they are a tensor."""
    return indices.tolist() if isinstance(indices, _C.Tensor) else indices


def _samples(dataset: Any, indices: Any) -> list[Any]:
    samples = []
    index = None
    try:
        for index in indices:
            samples.append(dataset[index])
    except Exception as error:
        error.add_note(f"[DataLoader] the sample being read: {index!r}")
        raise
    return samples


class StreamReader:
    """Takes batches off an `IterableDataset`.

    Parameters
    ----------
    dataset : iterable
        The stream; iterated once, from here on.
    collate : callable
        Makes the batch, or converts the sample.
    batch_size : int or None
        None gives single samples.
    drop_last : bool
        Leave out a last batch that is not full.
    """

    def __init__(
        self, dataset: Any, collate: Collate, batch_size: int | None, drop_last: bool
    ) -> None:
        self._samples = iter(dataset)
        self._collate = collate
        self._size = batch_size
        self._drop_last = drop_last
        self._ended = False

    def __call__(self) -> Any:
        """Give the next batch, or `END`."""
        if self._ended:
            return END
        if self._size is None:
            sample = next(self._samples, END)
            self._ended = sample is END
            return END if self._ended else self._collate(sample)
        batch = list(itertools.islice(self._samples, self._size))
        self._ended = len(batch) < self._size
        if not batch or (self._ended and self._drop_last):
            return END
        return self._collate(batch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__call__, END)


__all__ = ["END", "Reader", "Rows", "StreamReader", "as_list", "reader", "sample_reader"]
