# SPDX-License-Identifier: Apache-2.0
"""What a prepared loader reads from: a place in an epoch goes in, batches come out.

Where the number of batches is known, none is read before it is handed out, so random states
saved in the middle of an epoch are those that the next batch needs. A stream is read one batch
ahead, to know its last batch while it is handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .plans import Plan, agree
from .randomness import Generators, ReadingRandom
from .shards import Shards

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine, LoaderParts

__all__ = [
    "Batch",
    "Feed",
    "IndexSource",
    "Place",
    "Source",
    "tell_epoch",
    "uses_workers",
]


@dataclass(frozen=True)
class Place:
    """Where in an epoch reading begins.

    Attributes
    ----------
    first : int
        Batches of this rank that were given already.
    before : tuple of (int, int)
        Rounds that were given when the epoch was shared out by other rules, and the samples (or
        items) of each.
    order : mapping, optional
        Record of the epoch's order; None draws it.
    seed : int, optional
        Seed of workers and of reading; None draws it.
    generators : list, optional
        States of the loader's own random generators.
    """

    first: int = 0
    before: tuple[tuple[int, int], ...] = ()
    order: Mapping[str, Any] | None = None
    seed: int | None = None
    generators: list[list[int]] | None = None

    @property
    def taken_before(self) -> int:
        """Samples (or items) that went before."""
        return sum(rounds * size for rounds, size in self.before)

    @property
    def resumed(self) -> bool:
        """Whether the epoch began in another life: then nothing of its beginning is drawn anew."""
        return self.order is not None or self.seed is not None


class Batch(NamedTuple):
    """A batch on its way out.

    Attributes
    ----------
    data : object
        As the loader made it.
    valid : int or None
        Real samples at its head; None if all are, or nobody knows.
    last : bool
        Whether no other comes after it.
    left : int or None
        How many come after it, where that is known.
    """

    data: Any
    valid: int | None
    last: bool
    left: int | None = None


class Source(Protocol):
    """Where a loader's batches come from.

    Attributes
    ----------
    base : object
        The engine's loader.
    rules : list
        Everything that decides how an epoch is shared out, but for the rank; JSON.
    """

    base: Any

    @property
    def rules(self) -> list[Any]: ...

    def given(self, batches: int) -> tuple[int, int]:
        """Give how many rounds so many batches of this rank were, and the samples of one."""

    def taken(self, batches: int) -> int:
        """Count the real samples (or items) of so many batches of every rank."""

    def open(self, epoch: int, place: Place) -> Iterator[Batch]:
        """Read from a place on."""

    def pass_over(self, epoch: int, place: Place) -> None:
        """Leave random generators as an epoch does that is behind its last batch."""

    def record(self) -> Place:
        """Give what fixes the epoch opened last: order, seed, generators."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts of the loader which epoch begins."""

    def set_even(self, even: bool | None) -> bool:
        """Complete short rounds or not, from the next epoch on; False where that has no meaning."""

    def __len__(self) -> int: ...


def tell_epoch(epoch: int, *parts: Any) -> None:
    """Call ``set_epoch`` of whatever has one, once each."""
    told: set[int] = set()
    for part in parts:
        change = getattr(part, "set_epoch", None)
        if change is not None and id(part) not in told:
            told.add(id(part))
            change(epoch)


def uses_workers(loader: Any) -> bool:
    """Tell whether a loader reads in processes of its own."""
    return bool(getattr(loader, "num_workers", 0))


class Feed:
    """The indices of one rank's batches: the sampler that the engine's loader reads.

    Parameters
    ----------
    plan : Plan
        The order.
    shards : Shards
        The share.
    """

    order_is_fixed = True  # once begun: a loader may gather batches ahead of their turn

    def __init__(self, plan: Plan, shards: Shards) -> None:
        self.plan = plan
        self.shards = shards
        self.batch_size = getattr(shards, "batch_size", None)
        self.drop_last = shards.drop_last
        self.record: Mapping[str, Any] | None = None
        self._epoch = 0
        self._place = Place()
        self._started = False

    def begin(self, epoch: int, place: Place) -> None:
        """Choose where the next iteration begins."""
        self._epoch, self._place, self._started = epoch, place, False

    def start(self) -> None:
        """Decide the order, unless it is decided."""
        if self._started:
            return
        self._started = True
        place = self._place
        if place.order is None:
            epoch = self.plan.draw(self._epoch)
        else:
            epoch = self.plan.again(dict(place.order))
        self.record = epoch.record
        self.shards.start(epoch, place.taken_before, place.first)

    def __iter__(self) -> Iterator[Any]:
        # When the loader first asks, as a plain one would: its random draws keep their places.
        self.start()
        yield from self.shards

    def __len__(self) -> int:
        return self.shards.batches_of(len(self.plan))


class IndexSource:
    """Data with an index: batches are slices of an order that is known when the epoch begins.

    Parameters
    ----------
    engine : Engine
        Whose loader.
    parts : LoaderParts
        The loader taken apart.
    group : ProcessGroup or None
        Who shares.
    feed : Feed
        The indices.
    base : DataLoader
        The engine's loader over ``feed``.
    """

    def __init__(
        self, engine: Engine, parts: LoaderParts, group: ProcessGroup | None, feed: Feed, base: Any
    ) -> None:
        self.base = base
        self._engine = engine
        self._parts = parts
        self._group = group
        self._feed = feed
        self._generators = Generators(engine, parts)
        self._seed: int | None = None

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an epoch is shared out, but for the rank."""
        return self._feed.shards.rules

    def given(self, batches: int) -> tuple[int, int]:
        """Give how many rounds so many batches of this rank were, and the samples of one."""
        return batches, self._feed.shards.chunk

    def taken(self, batches: int) -> int:
        """Count the real samples (or items) of so many batches of every rank."""
        return self._feed.shards.taken(batches)

    def set_epoch(self, epoch: int) -> None:
        """Tell sampler, batch sampler and data set which epoch begins."""
        parts = self._parts
        inner = getattr(parts.batch_sampler, "sampler", None)
        tell_epoch(epoch, parts.sampler, parts.batch_sampler, inner, parts.dataset)

    def set_even(self, even: bool | None) -> bool:
        """Complete short rounds or not, from the next epoch on."""
        return self._feed.shards.set_even(even)

    def __len__(self) -> int:
        return len(self._feed)

    def open(self, epoch: int, place: Place) -> Iterator[Batch]:
        """Read from a place on."""
        feed, seed = self._feed, place.seed
        feed.begin(epoch, place)
        if not place.resumed:
            self._generators.restore(place.generators)
        if seed is None and uses_workers(self.base):
            seed = agree(self._engine.draw_seed(), self._group)
        self._seed = seed
        if seed is not None and self._group is not None:
            seed += self._group.rank  # other augmentations on each rank
        self._engine.start_epoch(self.base, place.first, seed)
        # An epoch that is taken up again has drawn already what making an iterator draws.
        quiet: AbstractContextManager[None] = nullcontext()
        if place.resumed:
            quiet = ReadingRandom(self._engine, seed or 0)()
        with quiet:
            batches = self._engine.batches_of(self.base)
            feed.start()
        if place.resumed:
            self._generators.restore(place.generators)
        return self._read(batches, place.first)

    def _read(self, batches: Iterator[Any], first: int) -> Iterator[Batch]:
        shards = self._feed.shards
        for at, data in enumerate(batches, first):
            left = shards.count - at - 1
            yield Batch(data, shards.valid(at), left == 0, left)

    def pass_over(self, epoch: int, place: Place) -> None:
        """Leave random generators as an epoch does that is behind its last batch."""
        self._generators.restore(place.generators)

    def record(self) -> Place:
        """Give what fixes the epoch opened last."""
        states = self._generators.states()
        return Place(order=self._feed.record, seed=self._seed, generators=states)
