# SPDX-License-Identifier: Apache-2.0
"""Torch's data sets that are tensors: a batch is one gather in C, with no Python per sample.

Only where nobody can tell but by the clock: exact types, torch's own collate function, no workers,
no gradient, a dtype that the core has. Knows loaders and tensors, no sharding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import data

from ...utils.data.rows import Rows
from .exchange import CORE, from_core, to_core
from .workers import Numbers

__all__ = ["batches_of"]


def batches_of(loader: Any) -> Iterator[Any]:
    """Iterate a loader; what it makes of plain tensors sample by sample is gathered at once."""
    sampler = getattr(loader, "batch_sampler", None)
    rows = _rows_of_loader(loader) if isinstance(sampler, Numbers) else None
    batches: Iterator[Any] = iter(loader)  # torch's own: it draws and warns as ever
    if rows is not None and sampler is not None:
        inner: Any = batches
        inner._dataset_fetcher = _Fetcher(rows)
        inner._sampler_iter = sampler.as_given()
    return batches


def _rows_of_loader(loader: Any) -> Rows | None:
    plain = loader.num_workers == 0 and loader.collate_fn is data.default_collate
    # Where a later torch has other names, or a subclass iterates in its own way, batches are made
    # sample by sample.
    own = type(loader).__iter__ is data.DataLoader.__iter__
    own = own and type(loader)._get_iterator is data.DataLoader._get_iterator
    if not (plain and own and _KNOWN):
        return None
    try:
        return _rows_of(loader.dataset)
    except (TypeError, ValueError, BufferError, RuntimeError):
        return None  # a layout that the core has not


def _rows_of(dataset: Any) -> Rows | None:
    if type(dataset) is data.TensorDataset:
        tensors, single = list(dataset.tensors), False
    elif type(dataset) is torch.Tensor:
        tensors, single = [dataset], True
    elif type(dataset) is data.Subset:
        inner = _rows_of(dataset.dataset)
        return None if inner is None else inner.within(dataset.indices)
    else:
        return None
    if not tensors or not all(map(_is_rows, tensors)):
        return None
    return Rows([to_core(t) for t in tensors], single)


def _is_rows(t: Any) -> bool:
    return (
        type(t) is torch.Tensor
        and t.ndim > 0
        and t.dtype in CORE
        and t.device.type == "cpu"
        and t.layout is torch.strided
        and not t.requires_grad
        and not t.is_neg()
        and t.is_contiguous()
    )


class _Fetcher:
    """Stands where torch's iterator asks its data set."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def fetch(self, index: Any) -> Any:
        """Give the batch of an index."""
        batch = self._rows.read(index)
        return [from_core(t) for t in batch] if type(batch) is list else from_core(batch)


def _knows_fetchers() -> bool:
    """Whether torch's iterator has the parts that are replaced here."""
    loader: data.DataLoader[Any] = data.DataLoader([0])
    state = torch.get_rng_state()
    try:
        batches = iter(loader)
        return hasattr(batches, "_sampler_iter") and hasattr(
            getattr(batches, "_dataset_fetcher", None), "fetch"
        )
    finally:
        torch.set_rng_state(state)


_KNOWN = _knows_fetchers()
