# SPDX-License-Identifier: Apache-2.0
"""Which samples this process reads in an epoch.

A *round* is what all processes take together: ``world`` batches, or one batch that is split. The
last round may be short; it is then completed by looping over the first samples (``even``), shared
out as it is, or left out. What is repeated stands at the end of a batch, so ``valid`` needs to
say only how many samples of it are real: that is what makes ``gather_for_metrics`` exact.

After any round all processes together have taken the beginning of the order, nothing else. So a
place in an epoch is one number, ``taken``, whatever the number of processes, and the rest of an
epoch can be shared out anew between others.

Index arithmetic is done in C; this file turns positions into a sampler's items. Knows no tensor
library: the engine supplies permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import _C

__all__ = ["BatchShards", "Epoch", "SampleShards", "Share", "Shards"]


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
    record : dict
        What the plan needs to give the same order again.
    """

    n: int
    order: Any = None
    items: Sequence[Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def take(self, positions: Any, start: int, stop: int) -> Any:
        """Give the items at a range of ``positions``: as a tensor where they are indices."""
        part = _C.slice(positions, 0, start, stop, 1)
        if self.items is None:
            return part
        return [self.items[i] for i in part.tolist()]

    def after(self, taken: int) -> Epoch:
        """Give what is left when the first ``taken`` items are gone."""
        if taken == 0:
            return self
        taken = min(taken, self.n)
        if self.order is None and self.items is None:
            order = _C.arange(taken, self.n, 1, _I64)
        elif self.order is None:
            return replace(self, n=self.n - taken, items=self.items[taken:])  # type: ignore[index]
        else:
            order = _C.slice(self.order, 0, taken, self.n, 1)
        return replace(self, n=self.n - taken, order=order)


_I64 = 3


class Shards:
    """The batches of one rank, cut from the order of an epoch.

    ``start`` gives it an order; iterating then gives the batches from ``first`` on.

    Parameters
    ----------
    share : Share
        The rules.
    part : int
        Items that one rank takes in a full round.

    Attributes
    ----------
    count : int
        Batches of this rank in the order that was given last.
    """

    kind = ""

    def __init__(self, share: Share, part: int) -> None:
        self.share = share
        self._even = share.even
        self.part = part
        self.drop_last = share.drop_last
        self._begin(Epoch(0), 0)

    @property
    def chunk(self) -> int:
        """Items of a full round of all ranks."""
        return self.part * self.share.world

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an order is cut, but for the rank; JSON."""
        share = self.share
        return [self.kind, share.world, self.part, share.even, share.drop_last, share.split]

    def set_even(self, even: bool | None) -> bool:
        """Complete short rounds or not, from the next order on; None: as it was first.

        False where it must be as it is.
        """
        alone = self.share.world == 1
        even = self._even if even is None or alone else even
        self.share = replace(self.share, even=even)
        return True

    def start(self, epoch: Epoch, taken: int = 0, first: int = 0) -> None:
        """Cut an order, without what was ``taken`` before; begin at batch ``first`` of the rest."""
        self._begin(epoch.after(taken), first)

    def _begin(self, epoch: Epoch, first: int) -> None:
        self._epoch = epoch
        self._first = first
        self.count = self.batches_of(epoch.n)

    def batches_of(self, n: int) -> int:
        """Count this rank's batches of n items."""
        full, rest = divmod(n, self.chunk)
        if rest == 0 or self.share.drop_last:
            return full
        return full + (self.share.even or rest > self.share.rank * self.part)

    def taken(self, batches: int) -> int:
        """Count the items that all ranks have taken when this one has taken so many batches."""
        return min(self._epoch.n, batches * self.chunk)

    def valid(self, batch: int) -> int | None:
        """Count the real samples at the head of a batch of this rank; None if all of it is."""
        full, rest = divmod(self._epoch.n, self.chunk)
        if batch < full or not self.share.even:
            return None
        own = rest - self.share.rank * self.part
        return None if own >= self.part else max(0, own)

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError


class BatchShards(Shards):
    """Batches of one rank: r, r + world, ... of the order cut into batches (or its part of each).

    Parameters
    ----------
    batch_size : int
        Of one rank, or of all together where ``share.split``.
    share : Share
        The rules.

    Raises
    ------
    ValueError
        If a batch cannot be split evenly.
    """

    kind = "batches"

    def __init__(self, batch_size: int, share: Share) -> None:
        if share.split and batch_size % share.world:
            raise ValueError(
                "[prepare] split_batches shares a batch out: got batch_size "
                f"{batch_size}, expected a multiple of the {share.world} processes"
            )
        self.batch_size = batch_size
        super().__init__(share, batch_size // share.world if share.split else batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, share = self._epoch, self.share
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
        edges = offsets.tolist()[self._first :]
        for start, stop in zip(edges, edges[1:], strict=False):
            yield epoch.take(flat, start, stop)


class SampleShards(Shards):
    """Samples r, r + world, ... as DistributedSampler gives them, then cut into batches.

    Parameters
    ----------
    batch_size : int
        Of one rank.
    share : Share
        The rules; ``drop_last`` leaves out the samples that do not divide.
    full_only : bool, optional
        Leave out a last batch that is not full; by default as ``share.drop_last``.
    """

    kind = "samples"

    def __init__(self, batch_size: int, share: Share, full_only: bool | None = None) -> None:
        self.batch_size = batch_size
        self._full_only = share.drop_last if full_only is None else full_only
        super().__init__(share, batch_size)

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an order is cut, but for the rank; JSON."""
        return [*super().rules, self._full_only]

    def _own(self, n: int) -> int:
        world = self.share.world
        return n // world if self.share.drop_last else -(-n // world)

    def set_even(self, even: bool | None) -> bool:
        """Without effect: this rule makes all ranks equal, or drops."""
        return False

    def batches_of(self, n: int) -> int:
        """Count this rank's batches of n samples."""
        full, rest = divmod(self._own(n), self.batch_size)
        return full + (rest > 0 and not self._full_only)

    def valid(self, batch: int) -> int | None:
        """Count the real samples at the head of a batch of this rank; None if all of it is."""
        world, own = self.share.world, self._own(self._epoch.n)
        repeated = own * world - self._epoch.n
        last = own - batch * self.batch_size
        if last > self.batch_size or self.share.rank < world - repeated:
            return None
        return last - 1

    def __iter__(self) -> Iterator[Any]:
        epoch, share = self._epoch, self.share
        own = _C.distributed_indices(epoch.n, share.world, share.rank, share.drop_last, epoch.order)
        size = self.batch_size
        for start in range(self._first * size, self.count * size, size):
            yield epoch.take(own, start, min(start + size, own.shape[0]))
