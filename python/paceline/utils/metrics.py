# SPDX-License-Identifier: Apache-2.0
"""``gather_for_metrics``: every real sample of the last round once, whatever was repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..engines import engine_of_tensor, is_tensor
from .operations import gather_in, gather_object_in, recursively_apply

if TYPE_CHECKING:
    from ..data_loader import DataLoaderShard
    from ..data_sharding import Counts
    from ..distributed import ProcessGroup

__all__ = ["gather_for_metrics_in"]


def gather_for_metrics_in(
    group: ProcessGroup | None, loader: DataLoaderShard | None, data: Any, as_objects: bool
) -> Any:
    """Gather ``data`` and drop what is repeated; see ``Accelerator.gather_for_metrics``."""
    counts = None
    if loader is not None and loader.end_of_dataloader:
        counts = loader.tail_counts
    if as_objects or not _has_only_tensors(data):
        return _gather_objects(group, data, counts)
    if counts is None or group is None:
        return gather_in(group, data)
    return recursively_apply(lambda t: _gather_real(group, t, counts), data)


def _has_only_tensors(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(_has_only_tensors(item) for item in data)
    if isinstance(data, Mapping):
        return all(_has_only_tensors(item) for item in data.values())
    return is_tensor(data)


def _gather_objects(group: ProcessGroup | None, data: Any, counts: Counts | None) -> list[Any]:
    if counts is not None and group is not None and isinstance(data, (list, tuple)):
        data = data[: counts[group.rank]]
    return gather_object_in(group, data)


def _gather_real(group: ProcessGroup, tensor: Any, counts: Counts) -> Any:
    engine = engine_of_tensor(tensor)
    if not engine.shape(tensor):
        # A scalar per batch: keep those of the ranks whose batch held a real sample.
        every = engine.all_gather(engine.at_least_1d(tensor), group)
        kept = [engine.slice(every, r, r + 1) for r, count in enumerate(counts) if count]
        return engine.cat(kept)
    length = engine.shape(tensor)[0]
    longest = max(counts)
    if length < longest:  # even_batches=False: the last batches differ in length
        tensor = engine.pad(tensor, 0, longest, 0, False)
        length = longest
    every = engine.all_gather(tensor, group)
    kept = [
        engine.slice(every, rank * length, rank * length + count)
        for rank, count in enumerate(counts)
        if count
    ]
    return kept[0] if len(kept) == 1 else engine.cat(kept)
