# SPDX-License-Identifier: Apache-2.0
"""Chooses, for a data loader as the script made it, what its prepared form reads from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..utils.dataclasses import DataLoaderConfiguration
from .item_shards import ItemShards, ListShards, SharedShards
from .plans import ItemPlan, Plan, SeededPlan, SequentialPlan, agree
from .shards import BatchShards, Epoch, SampleShards, Shards, Share
from .sources import Feed, IndexSource, Source
from .streams import StreamSource

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine, LoaderParts

__all__ = ["make_source"]


def make_source(
    loader: Any,
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    slice_fn: Callable[..., Any] | None = None,
) -> Source:
    """Give what a prepared loader reads from.

    Parameters
    ----------
    loader : DataLoader
        The engine's loader, as the script made it.
    engine : Engine
        Whose loader it is.
    group : ProcessGroup or None
        None shares nothing out.
    config : DataLoaderConfiguration
        The rules; ``dispatch_batches`` is decided: None counts as False.
    slice_fn : callable, optional
        Cuts a rank's part where rank 0 reads for all.

    Raises
    ------
    ValueError
        When ``split_batches`` is asked for and the processes do not divide the batch size, or it
        is not known.
    """
    parts = engine.loader_parts(loader)
    world = 1 if group is None else group.world_size
    rank = 0 if group is None else group.rank
    _check_split(config, parts, world)
    even = config.even_batches and world > 1  # alone there is nobody to be even with
    share = Share(rank, world, even, parts.drop_last, config.split_batches)
    if config.dispatch_batches and group is not None:
        from .dispatch import DispatchSource

        alone = Share(0, 1, even=False, drop_last=parts.drop_last)
        inner = _own_source(loader, engine, None, config, parts, alone)
        return DispatchSource(engine, group, inner, share, slice_fn)
    return _own_source(loader, engine, group, config, parts, share)


def _check_split(config: DataLoaderConfiguration, parts: LoaderParts, world: int) -> None:
    if not config.split_batches or world == 1:
        return
    if parts.batch_size is None:
        raise ValueError(
            "[prepare] split_batches shares a batch out: got a loader without batch_size, expected "
            "one in the loader or its batch_sampler"
        )
    if parts.batch_size % world:
        raise ValueError(
            "[prepare] split_batches shares a batch out: got batch_size "
            f"{parts.batch_size}, expected a multiple of the {world} processes"
        )


def _own_source(
    loader: Any,
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    parts: LoaderParts,
    share: Share,
) -> Source:
    """Give the source of a rank that reads for itself."""
    if parts.order == "stream":
        return _stream(loader, engine, group, parts, share)
    source = parts.batch_sampler if parts.own_batches else parts.sampler
    if parts.batch_size is None and _is_sized_batches(source):
        parts_size = source.batch_size  # a batch sampler given as the sampler
    else:
        parts_size = parts.batch_size
    if not hasattr(source, "__len__") and share.world == 1:
        return StreamSource(engine, loader, parts, group)  # an order that has no end, maybe
    if parts.order == "distributed" or getattr(source, "num_replicas", 1) > 1:
        plan, shards = _already_shared(engine, parts, share, source)
    else:
        plan = _plan(engine, group, config, parts, source)
        shards = _shards(config, parts, parts_size, share)
    feed = Feed(plan, shards)
    unbatched = parts.batch_sampler is None
    base = engine.with_samples(loader, feed) if unbatched else engine.with_batches(loader, feed)
    return IndexSource(engine, parts, group, feed, base)


def _is_sized_batches(sampler: Any) -> bool:
    return isinstance(getattr(sampler, "batch_size", None), int)


def _stream(
    loader: Any, engine: Engine, group: ProcessGroup | None, parts: LoaderParts, share: Share
) -> Source:
    if share.world == 1:
        return StreamSource(engine, loader, parts, group)
    shard, shards = getattr(parts.dataset, "shard", None), _number_of_shards(parts.dataset)
    if shard is not None and shards >= share.world and not share.split:
        # The data set knows how to divide itself, without every rank reading all of it.
        own = replace(parts, dataset=shard(num_shards=share.world, index=share.rank))
        alone = Share(0, 1, even=False, drop_last=share.drop_last)
        return StreamSource(engine, loader, own, group, alone, divided=share.world)
    return StreamSource(engine, loader, parts, group, share)


def _number_of_shards(dataset: Any) -> int:
    for name in ("num_shards", "n_shards"):
        number = getattr(dataset, name, None)
        if isinstance(number, int):
            return number
    return 0


def _shards(
    config: DataLoaderConfiguration, parts: LoaderParts, size: int | None, share: Share
) -> Shards:
    if parts.own_batches or (parts.batch_sampler is None and size is not None):
        return ListShards(size, share)
    if size is None:
        return ItemShards(share)
    return (SampleShards if config.shard == "samples" else BatchShards)(size, share)


def _plan(
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    parts: LoaderParts,
    source: Any,
) -> Plan:
    """Give what decides the order of an epoch: the same on all ranks."""
    if parts.order == "sequential":
        return SequentialPlan(source)
    if parts.order != "shuffled":
        return ItemPlan(source, group)
    if not config.use_seedable_sampler and getattr(source, "generator", None) is not None:
        return ItemPlan(source, group)  # the generator that the script gave decides
    if not config.use_seedable_sampler:
        return SeededPlan(source, engine, lambda epoch: _drawn(engine, group))
    seed = config.data_seed
    if seed is None:
        seed = engine.initial_seed() if parts.seed is None else parts.seed
    agreed = int(agree(seed, group))
    return SeededPlan(source, engine, lambda epoch: agreed + epoch)


def _drawn(engine: Engine, group: ProcessGroup | None) -> int:
    here = group is None or group.rank == 0
    return int(agree(engine.draw_seed() if here else 0, group))


def _already_shared(
    engine: Engine, parts: LoaderParts, share: Share, sampler: Any
) -> tuple[Plan, Shards]:
    """Read a sampler that shares out itself as it is: it is not shared out again."""
    size = parts.batch_size
    replicas = getattr(sampler, "num_replicas", 1)
    fits = replicas == share.world and getattr(sampler, "rank", None) == share.rank
    if parts.plain and fits and size is not None:
        rules = Share(share.rank, share.world, drop_last=bool(sampler.drop_last))
        shards = SampleShards(size, rules, full_only=parts.drop_last)
        if not sampler.shuffle:
            return SequentialPlan(sampler.dataset), shards
        seed = int(sampler.seed)
        return SeededPlan(sampler.dataset, engine, lambda epoch: seed + epoch), shards
    own = Share(0, 1, even=False, drop_last=parts.drop_last)
    plan = ItemPlan(sampler, None, owner=share.rank)
    if parts.own_batches:
        return plan, ListShards(size, own)
    if size is None:
        return plan, ItemShards(own)
    like = None
    if fits and hasattr(sampler, "dataset") and hasattr(sampler, "drop_last"):
        rules = Share(share.rank, share.world, drop_last=bool(sampler.drop_last))
        like = SampleShards(size, rules, full_only=parts.drop_last)
        like.start(Epoch(len(sampler.dataset)))
    return plan, SharedShards(size, own, like)
