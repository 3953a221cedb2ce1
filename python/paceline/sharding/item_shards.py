# SPDX-License-Identifier: Apache-2.0
"""Sharing out what a sampler of the user's gives: single items, or batches it has formed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import _C
from .shards import BatchShards, Epoch, SampleShards, Shards, Share

__all__ = ["ItemShards", "ListShards", "SharedShards"]


class ItemShards(Shards):
    """Whole items of a sampler shared out: r, r + world, ...; the items may be batches.

    Used where batches are formed by a sampler of the user's in sizes of its own, or not at all.
    With ``share.split`` each item is a batch, of which every rank takes its part.
    """

    kind = "items"

    def __init__(self, share: Share) -> None:
        super().__init__(share, 1)

    @property
    def chunk(self) -> int:
        """Items of a full round of all ranks."""
        return 1 if self.share.split else self.share.world

    def batches_of(self, n: int) -> int:
        """Count this rank's batches of n items."""
        return n if self.share.split else super().batches_of(n)

    def valid(self, batch: int) -> int | None:
        """Count the real samples of a batch of this rank; None if all of it is."""
        if not self.share.split:
            return super().valid(batch)
        whole = len((self._epoch.items or ())[batch])
        part = -(-whole // self.share.world)
        own = whole - self.share.rank * part
        return None if own >= part or not self.share.even else max(0, own)

    def __iter__(self) -> Iterator[Any]:
        if self.share.split:
            yield from self._parts()
            return
        epoch, share = self._epoch, self.share
        flat, _ = _C.shard_batches(
            epoch.n, 1, share.world, share.rank, share.drop_last, share.even, False, epoch.order
        )
        own = flat.tolist() if epoch.items is None else epoch.take(flat, 0, flat.shape[0])
        yield from own[self._first :]

    def _parts(self) -> Iterator[Any]:
        rank, items = self.share.rank, self._epoch.items or ()
        for batch in items[self._first :]:
            batch = list(batch)
            part = -(-len(batch) // self.share.world)
            own = batch[rank * part : (rank + 1) * part]
            while self.share.even and len(own) < part:
                own += list(items[0])[: part - len(own)]
            yield own


class ListShards(Shards):
    """Batches that a sampler of the user's formed.

    Where all but the last have ``batch_size`` indices, they are shared out as ``BatchShards``
    does, the last one completed; else each is an item of its own, for ``ItemShards``.

    Parameters
    ----------
    batch_size : int or None
        What the sampler says its batches have.
    share : Share
        The rules.
    """

    kind = "lists"

    def __init__(self, batch_size: int | None, share: Share) -> None:
        self.batch_size = batch_size
        self._items = ItemShards(share)
        self._batches = None if batch_size is None else BatchShards(batch_size, share)
        self._now: Shards = self._items
        super().__init__(share, 1)

    @property
    def chunk(self) -> int:
        """Items of a full round of all ranks: samples where sizes are regular, else batches."""
        return self._now.chunk

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an order is cut, but for the rank; JSON."""
        return [*self._items.rules, self.batch_size]

    def set_even(self, even: bool | None) -> bool:
        """Complete short rounds or not, from the next order on."""
        if self._batches is not None:
            self._batches.set_even(even)
        return self._items.set_even(even)

    def start(self, epoch: Epoch, taken: int = 0, first: int = 0) -> None:
        """Cut an order, without what was ``taken`` before; begin at batch ``first`` of the rest."""
        batches, size = epoch.items or (), self.batch_size
        regular = size is not None and all(len(batch) == size for batch in batches[:-1])
        if regular and batches and 0 < len(batches[-1]) <= (size or 0) and self._batches:
            flat = [index for batch in batches for index in batch]
            epoch = replace(epoch, n=len(flat), items=flat)
            self._now = self._batches
        else:
            self._now = self._items
        self._now.start(epoch, taken, first)
        self.count = self._now.count

    def _begin(self, epoch: Epoch, first: int) -> None:
        self.count = 0

    def batches_of(self, n: int) -> int:
        """Count this rank's batches where the sampler gives n."""
        return self._items.batches_of(n)

    def taken(self, batches: int) -> int:
        """Count the items that all ranks have taken when this one has taken so many batches."""
        return self._now.taken(batches)

    def valid(self, batch: int) -> int | None:
        """Count the real samples at the head of a batch of this rank; None if all of it is."""
        return self._now.valid(batch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now)


class SharedShards(BatchShards):
    """Batches of a sampler that gives this rank its samples already.

    Parameters
    ----------
    batch_size : int
        Of this rank.
    share : Share
        That of a rank alone.
    like : SampleShards, optional
        Knows which samples such a sampler repeats; None where nobody knows.
    """

    kind = "shared"

    def __init__(self, batch_size: int, share: Share, like: SampleShards | None) -> None:
        super().__init__(batch_size, share)
        self._like = like

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an order is cut; JSON."""
        world = 1 if self._like is None else self._like.share.world
        return [*super().rules, world]

    def valid(self, batch: int) -> int | None:
        """Count the real samples at the head of a batch of this rank; None if all of it is."""
        return None if self._like is None else self._like.valid(batch)
