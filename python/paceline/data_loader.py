# SPDX-License-Identifier: Apache-2.0
"""The data loader that ``prepare`` gives back: this process's share, on its device.

It reads one batch ahead, so that the last batch is known to be the last while it is handed out:
accumulation steps there, and ``gather_for_metrics`` drops the samples that were repeated to make
all ranks' batches equal. Knows loaders through the engine only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._call_site import frames_of_ours
from .data_sharding import BatchShards, Counts, Epoch, ItemShards, SampleShards, Share
from .utils.dataclasses import DataLoaderConfiguration, not_yet
from .utils.operations import send_to_device

if TYPE_CHECKING:
    from .distributed import ProcessGroup
    from .engines import Engine, LoaderParts
    from .state import GradientState

__all__ = ["DataLoaderShard", "prepare_data_loader"]


class DataLoaderShard:
    """A data loader of one process.

    It answers to ``isinstance`` as the loader it was made from, and what is not listed here is
    that loader's attribute.

    Attributes
    ----------
    batch_size : int or None
        As the script wrote it.
    total_batch_size : int or None
        Of all processes together.
    total_dataset_length : int
        Samples in the whole data set.
    end_of_dataloader : bool
        Whether the batch given last is the last one.
    remainder : int
        Real samples in the last round over all processes, -1 if all of them are.
    iteration : int
        Number of the epoch that the next iteration reads.
    """

    def __init__(
        self,
        base: Any,
        shards: Any,
        parts: LoaderParts,
        *,
        device: Any = None,
        non_blocking: bool = False,
        total_batch_size: int | None = None,
        gradient_state: GradientState | None = None,
    ) -> None:
        self.base = base
        self.batch_size = parts.batch_size
        self.total_batch_size = total_batch_size
        self.end_of_dataloader = False
        self.iteration = 0
        self._shards = shards  # what has set_epoch and tail_counts; None where there is neither
        self._parts = parts
        self._device = device
        self._non_blocking = non_blocking
        self._gradient_state = gradient_state

    @property
    def __class__(self) -> type:
        # Scripts and libraries ask isinstance(loader, DataLoader); type(loader) is still ours.
        return type(self.__dict__.get("base", self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("[DataLoaderShard] the class cannot be changed")

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self.base, name)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        return f"DataLoaderShard({self.base!r})"

    @property
    def total_dataset_length(self) -> int:
        """Samples in the whole data set."""
        return len(self._parts.dataset)

    @property
    def tail_counts(self) -> Counts | None:
        """Real samples of the last round on each rank; None if all of them are real."""
        counts: Counts | None = getattr(self._shards, "tail_counts", None)
        return counts

    @property
    def remainder(self) -> int:
        """Real samples in the last round over all processes, -1 if all of them are."""
        counts = self.tail_counts
        return -1 if counts is None else sum(counts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and so the order, that the next iteration reads."""
        self.iteration = epoch
        for part in (self._shards, self._parts.sampler, self._parts.dataset):
            change = getattr(part, "set_epoch", None)
            if change is not None:
                change(epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.iteration
        self.set_epoch(epoch)
        self.iteration = epoch + 1
        self.end_of_dataloader = False
        state = self._gradient_state
        if state is not None:
            state.enter_loader(self)
        try:
            yield from self._look_ahead(iter(self.base))
        finally:
            if state is not None:
                state.leave_loader(self)

    def _look_ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            current = next(batches)
        except StopIteration:
            return
        while not self.end_of_dataloader:
            batch = self._to_device(current)
            try:
                current = next(batches)
            except StopIteration:
                self.end_of_dataloader = True
            yield batch

    def _to_device(self, batch: Any) -> Any:
        if self._device is None:
            return batch
        return send_to_device(batch, self._device, self._non_blocking)


def prepare_data_loader(
    loader: Any,
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    *,
    device: Any = None,
    gradient_state: GradientState | None = None,
) -> DataLoaderShard:
    """Give this process's share of a data loader.

    Parameters
    ----------
    loader : DataLoader
        The engine's loader, as the script made it.
    engine : Engine
        Whose loader it is.
    group : ProcessGroup or None
        None shares nothing out.
    config : DataLoaderConfiguration
        The rules.
    device : optional
        Where batches go; None leaves them.
    gradient_state : GradientState, optional
        Told when an iteration begins and ends.

    Returns
    -------
    DataLoaderShard
        A new loader; the given one is not changed.

    Raises
    ------
    ValueError
        When ``split_batches`` is asked for and the processes do not divide the batch size.
    NotImplementedError
        For an iterable data set on several processes.
    """
    parts = engine.loader_parts(loader)
    world = 1 if group is None else group.world_size
    rank = 0 if group is None else group.rank
    even = config.even_batches and world > 1  # alone there is nobody to be even with
    share = Share(rank, world, even, parts.drop_last, config.split_batches)
    shards: Any
    if parts.order == "stream" and world > 1:
        not_yet("sharing out an IterableDataset", "use a Dataset with __len__ and __getitem__")
    if parts.order == "distributed" and world > 1:
        base, shards = loader, _AlreadyShared(parts, world)
    elif parts.order in ("stream", "distributed"):
        base, shards = loader, None
    else:
        base, shards = _share_out(loader, engine, group, config, parts, share)
    size = parts.batch_size
    return DataLoaderShard(
        base,
        shards,
        parts,
        device=device,
        non_blocking=config.non_blocking,
        total_batch_size=size if size is None or config.split_batches else size * world,
        gradient_state=gradient_state,
    )


def _share_out(
    loader: Any,
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    parts: LoaderParts,
    share: Share,
) -> tuple[Any, Any]:
    """Build the loader over this rank's batches, and the sampler that forms them."""
    if parts.order == "custom" and share.world == 1:
        return loader, None  # nothing to share, and the sampler's own order is the right one
    plan = _plan(engine, group, config, parts)
    items = parts.batch_sampler if parts.own_batches else parts.sampler
    if parts.own_batches:
        batches = ItemShards(plan, len(items), share)
        return engine.with_batches(loader, batches), batches
    if parts.batch_size is None:
        samples = ItemShards(plan, len(items), share)
        return engine.with_samples(loader, samples), samples
    kind = SampleShards if config.shard == "samples" else BatchShards
    shards = kind(plan, len(items), parts.batch_size, share)
    return engine.with_batches(loader, shards), shards


def _plan(
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    parts: LoaderParts,
) -> Callable[[int], Epoch]:
    """Give the function that decides the order of an epoch: the same on all ranks."""
    if parts.order == "sequential":
        n = len(parts.sampler)
        return lambda epoch: Epoch(n)
    if parts.order == "shuffled":
        n = len(parts.sampler)
        if not config.use_seedable_sampler:
            return lambda epoch: Epoch(n, engine.permutation(n, _agree(engine.draw_seed(), group)))
        seed = config.data_seed
        if seed is None:
            seed = engine.initial_seed() if parts.seed is None else parts.seed
        seed = _agree(seed, group)
        return lambda epoch: Epoch(n, engine.permutation(n, seed + epoch))
    source = parts.batch_sampler if parts.own_batches else parts.sampler

    def from_rank_zero(epoch: int) -> Epoch:
        # Whatever the sampler draws from (weights, Python's random, NumPy): rank 0 decides.
        items = _agree(list(source) if group is None or group.rank == 0 else None, group)
        return Epoch(len(items), None, items)

    return from_rank_zero


def _agree(value: Any, group: ProcessGroup | None) -> Any:
    """Give rank 0's value on every rank."""
    if group is None:
        return value
    box = [value]
    group.broadcast_object_list(box, 0, depth=frames_of_ours())
    return box[0]


class _AlreadyShared:
    """Stands for a DistributedSampler of the script's own: it is not shared out again."""

    def __init__(self, parts: LoaderParts, world: int) -> None:
        self._parts = parts
        self._world = world

    @property
    def tail_counts(self) -> Counts | None:
        """Real samples of the last batch on each rank, as for ``SampleShards``."""
        size, sampler = self._parts.batch_size, self._parts.sampler
        if size is None or getattr(sampler, "num_replicas", None) != self._world:
            return None
        share = Share(0, self._world, drop_last=bool(sampler.drop_last))
        shards = SampleShards(lambda epoch: Epoch(0), len(sampler.dataset), size, share)
        last_left_out = self._parts.drop_last and sampler.num_samples % size
        return None if last_left_out else shards.tail_counts
