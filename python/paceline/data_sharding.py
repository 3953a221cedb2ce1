# SPDX-License-Identifier: Apache-2.0
"""Which samples this process reads in an epoch.

A *round* is what all processes take together: ``world`` batches, or one batch that is split. The
last round may be short; it is then completed by looping over the first samples (``even``), shared
out as it is, or left out. ``tail_counts`` tells how many samples of it are real on each rank,
which is what makes ``gather_for_metrics`` exact.

Index arithmetic is done in C; this file turns positions into a sampler's items. Knows no tensor
library: the engine supplies permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from . import _C

__all__ = ["BatchShards", "Epoch", "ItemShards", "SampleShards", "Share", "tail_of_batches"]

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """Whose share: rank out of world, and how a short last round is treated."""

    rank: int = 0
    world: int = 1
    even: bool = True
    drop_last: bool = False
    split: bool = False


@dataclass(frozen=True)
class Epoch:
    """One epoch's order: how many items, in which order, and what they are.

    Attributes
    ----------
    n : int
        Number of items.
    order : object
        None for 0..n-1, else an int64 tensor of the core.
    items : sequence, optional
        What a position stands for; None where positions are the samples' own indices.
    """

    n: int
    order: Any = None
    items: Sequence[Any] | None = None

    def take(self, positions: Any, start: int, stop: int) -> Any:
        """Give the items at a range of ``positions``: as a tensor where they are indices."""
        part = _C.slice(positions, 0, start, stop, 1)
        if self.items is None:
            return part
        return [self.items[i] for i in part.tolist()]


class Shards(Protocol):
    """A batch or sample sampler of one rank, with an epoch that can be set."""

    def set_epoch(self, epoch: int) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    @property
    def tail_counts(self) -> Counts | None: ...


def tail_of_batches(n: int, part: int, share: Share) -> Counts | None:
    """Count the real samples of the last round on each rank; None if all of them are real.

    Parameters
    ----------
    n : int
        Items in the epoch.
    part : int
        Items that one rank takes in a full round.
    share : Share
        The rules.
    """
    rest = n % (part * share.world)
    if rest == 0 or share.drop_last:
        return None
    counts = tuple(min(part, max(0, rest - rank * part)) for rank in range(share.world))
    # A rank whose share of an uncompleted round is empty ended with the round before.
    return None if not share.even and counts[share.rank] == 0 else counts


class _EpochSampler:
    """Asks for the order of an epoch once, when it is first needed."""

    def __init__(self, plan: Callable[[int], Epoch], length: int) -> None:
        self._plan = plan
        self._length = length  # of an epoch, before sharing
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads."""
        self.epoch = epoch


class BatchShards(_EpochSampler):
    """Batches of one rank: r, r + world, ... of the order cut into batches (or its part of each).

    Parameters
    ----------
    plan : callable
        Gives the ``Epoch`` of a number; it may be collective, so all ranks iterate together.
    length : int
        Number of samples in an epoch.
    batch_size : int
        Of one rank, or of all together where ``share.split``.
    share : Share
        The rules.
    """

    def __init__(
        self, plan: Callable[[int], Epoch], length: int, batch_size: int, share: Share
    ) -> None:
        super().__init__(plan, length)
        self.batch_size = batch_size
        self.share = share
        self.drop_last = share.drop_last
        if share.split and batch_size % share.world:
            raise ValueError(
                "[prepare] split_batches shares a batch out: got batch_size "
                f"{batch_size}, expected a multiple of the {share.world} processes"
            )
        self._part = batch_size // share.world if share.split else batch_size

    def __iter__(self) -> Iterator[Any]:
        epoch = self._plan(self.epoch)
        share = self.share
        flat, offsets = _C.shard_batches(
            epoch.n,
            self.batch_size,
            share.world,
            share.rank,
            share.drop_last,
            share.even,
            share.split,
            epoch.order,
        )
        edges = offsets.tolist()
        for start, stop in zip(edges, edges[1:], strict=False):
            yield epoch.take(flat, start, stop)

    def __len__(self) -> int:
        full, rest = divmod(self._length, self._part * self.share.world)
        if rest == 0 or self.share.drop_last:
            return full
        return full + (self.share.even or rest > self.share.rank * self._part)

    @property
    def tail_counts(self) -> Counts | None:
        """Real samples of the last round on each rank; None if all of them are real."""
        return tail_of_batches(self._length, self._part, self.share)


class ItemShards(_EpochSampler):
    """Whole items of a sampler shared out: r, r + world, ...; the items may be batches.

    Used where batches are formed by a sampler of the user's, or not formed at all.
    """

    def __init__(self, plan: Callable[[int], Epoch], length: int, share: Share) -> None:
        super().__init__(plan, length)
        self.share = share

    def __iter__(self) -> Iterator[Any]:
        epoch = self._plan(self.epoch)
        share = self.share
        flat, _ = _C.shard_batches(
            epoch.n, 1, share.world, share.rank, share.drop_last, share.even, False, epoch.order
        )
        yield from flat.tolist() if epoch.items is None else epoch.take(flat, 0, flat.shape[0])

    def __len__(self) -> int:
        full, rest = divmod(self._length, self.share.world)
        if rest == 0 or self.share.drop_last:
            return full
        return full + (self.share.even or rest > self.share.rank)

    @property
    def tail_counts(self) -> Counts | None:
        """None: how many samples an item holds is not known here."""
        return None


class SampleShards(_EpochSampler):
    """Samples r, r + world, ... as DistributedSampler gives them, then cut into batches."""

    def __init__(
        self, plan: Callable[[int], Epoch], length: int, batch_size: int, share: Share
    ) -> None:
        super().__init__(plan, length)
        self.batch_size = batch_size
        self.share = share
        self.drop_last = share.drop_last
        world = share.world
        self._own = length // world if share.drop_last else -(-length // world)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._plan(self.epoch)
        share = self.share
        own = _C.distributed_indices(epoch.n, share.world, share.rank, share.drop_last, epoch.order)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield epoch.take(own, start, start + self.batch_size)

    def __len__(self) -> int:
        full, rest = divmod(self._own, self.batch_size)
        return full + (rest > 0 and not self.share.drop_last)

    @property
    def tail_counts(self) -> Counts | None:
        """Real samples of the last batch on each rank; None if all of them are real."""
        repeated = self._own * self.share.world - self._length
        if repeated <= 0:
            return None
        last = self._own - (len(self) - 1) * self.batch_size
        first_repeated = self.share.world - repeated
        return tuple(
            last - (1 if rank >= first_repeated else 0) for rank in range(self.share.world)
        )
