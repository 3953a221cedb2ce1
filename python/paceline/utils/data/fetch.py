# SPDX-License-Identifier: Apache-2.0
"""From the indices of a batch to the batch.

Data that lies in tensors or arrays is gathered by one C call per tensor; anything else is read
sample by sample and collated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from paceline import _C
from paceline.utils.data.collate import Collate, default_collate
from paceline.utils.data.dataset import Subset, TensorDataset

_I64 = 3
Gather = Callable[[_C.Tensor], Any]


def _gather_of(dataset: Any) -> Gather | None:
    """What gathers rows of `dataset` as `default_collate` would join them, or None."""
    if isinstance(dataset, _C.Tensor):
        return _rows(dataset) if dataset.ndim else None
    if type(dataset) is TensorDataset:
        tensors = dataset.tensors
        if not all(isinstance(t, _C.Tensor) and t.ndim for t in tensors):
            return None
        columns = [_rows(t) for t in tensors]
        return lambda index: [column(index) for column in columns]
    if type(dataset) is Subset:
        inner = _gather_of(dataset.dataset)
        if inner is None:
            return None
        chosen = _C.from_data([int(i) for i in dataset.indices], _I64)
        return lambda index: inner(_C.index_select(chosen, 0, index))
    return _gather_of_array(dataset)


def _gather_of_array(dataset: Any) -> Gather | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(dataset) is not numpy.ndarray or dataset.ndim == 0:
        return None
    try:
        shared = _C.from_buffer(dataset, -1)
    except (TypeError, ValueError, BufferError):
        return None  # a dtype or a layout that tensors have not
    return _rows(shared)


def _rows(t: _C.Tensor) -> Gather:
    return lambda index: _C.index_select(t, 0, index)


def batch_reader(dataset: Any, collate: Collate) -> Callable[[Any], Any]:
    """A function from the indices of a batch, a list or an int64 tensor, to the batch."""
    gather = _gather_of(dataset) if collate is default_collate else None
    if gather is not None:
        return _by_gather(gather)

    several = getattr(dataset, "__getitems__", None)

    def read(indices: Any) -> Any:
        if isinstance(indices, _C.Tensor):
            indices = indices.tolist()
        if callable(several):
            return collate(several(indices))
        return collate([dataset[i] for i in indices])

    return read


def _by_gather(gather: Gather) -> Callable[[Any], Any]:
    def read(indices: Any) -> Any:
        if not isinstance(indices, _C.Tensor):
            indices = _C.from_data([int(i) for i in indices], _I64)
        return gather(indices)

    return read
