# SPDX-License-Identifier: Apache-2.0
"""One rank's part of data that has no index.

Every rank reads the whole stream and keeps its slice of each round, so all must read the same:
``sources`` sees to that. A sample travels with a mark that tells whether it is real or repeats
one; the marks become the count of real samples of a batch where the batch is made, which may be
in a worker process. Knows no tensor library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from .plans import agree
from .randomness import Generators, ReadingRandom
from .shards import Share
from .sources import Batch, Place, tell_epoch, uses_workers

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine, LoaderParts

__all__ = ["CountingCollate", "StreamShard", "StreamSource"]

#: Rounds that were given before the stream was shared out as it is now, and samples per round.
Before = Sequence[tuple[int, int]]


class StreamShard:
    """The samples of one rank, each with whether it is real: (sample, bool).

    Rank r has samples r * part to (r + 1) * part of each round of world * part. A round that the
    stream does not fill is completed from the first round (``even``), shared out as it is, or
    left out (``drop_last``).

    Parameters
    ----------
    dataset : iterable
        The stream; all ranks must read the same from it.
    part : int
        Samples that one rank takes in a round.
    share : Share
        The rules.
    before : sequence of (int, int)
        Rounds that were given already, and how many samples each had.
    worker : callable, optional
        Gives id and number of this worker process, or None outside; each worker reads a stream
        of its own, and they give rounds in turn.
    """

    def __init__(
        self,
        dataset: Any,
        part: int,
        share: Share,
        before: Before = (),
        worker: Callable[[], tuple[int, int] | None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.part = part
        self.share = share
        self.before = before
        self._worker = worker

    def _read_before(self) -> int:
        where = None if self._worker is None else self._worker()
        rank, workers = (0, 1) if where is None else where
        return sum(-(-(rounds - rank) // workers) * size for rounds, size in self.before)

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        share, whole = self.share, self.part * self.share.world
        own = slice(share.rank * self.part, (share.rank + 1) * self.part)
        skip = self._read_before()
        first: list[Any] = []
        current: list[Any] = []
        for at, sample in enumerate(self.dataset):
            if at < skip:
                continue
            current.append(sample)
            if len(current) == whole:
                yield from ((item, True) for item in current[own])
                first = first or current
                current = []
        if not current or share.drop_last:
            return
        real = len(current)
        first = first or list(current)
        while share.even and len(current) < whole:
            current += first[: whole - len(current)]
        yield from ((item, own.start + i < real) for i, item in enumerate(current[own]))

    def __len__(self) -> int:
        whole = self.part * self.share.world
        full, rest = divmod(len(self.dataset), whole)
        if rest == 0 or self.share.drop_last:
            return full * self.part
        if self.share.even:
            return (full + 1) * self.part
        return full * self.part + min(self.part, max(0, rest - self.share.rank * self.part))

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream which epoch begins: by its ``set_epoch``, else through its generator."""
        change = getattr(self.dataset, "set_epoch", None)
        if change is not None:
            change(epoch)
            return
        seed = getattr(getattr(self.dataset, "generator", None), "manual_seed", None)
        if seed is not None and self.share.world > 1:
            seed(epoch)


class CountingCollate:
    """Makes (batch, number of real samples) of marked samples; None where all are real.

    Parameters
    ----------
    collate : callable
        Makes a batch of samples, or converts one sample where ``batched`` is False.
    batched : bool
        Whether it gets lists.
    """

    def __init__(self, collate: Callable[[Any], Any], batched: bool) -> None:
        self._collate = collate
        self._batched = batched

    def __call__(self, marked: Iterable[Any]) -> tuple[Any, int | None]:
        if not self._batched:
            sample, real = marked
            return self._collate(sample), None if real else 0
        pairs = list(marked)
        batch = self._collate([sample for sample, _ in pairs])
        count = sum(real for _, real in pairs)
        return batch, count if count < len(pairs) else None


class StreamSource:
    """Data without an index: read from the start, one batch ahead.

    Parameters
    ----------
    engine : Engine
        Whose loader.
    loader : DataLoader
        As the script made it.
    parts : LoaderParts
        The loader taken apart.
    group : ProcessGroup or None
        Who must read the same.
    share : Share, optional
        Which part of the stream is this rank's; None takes all that the loader gives.
    divided : int
        Into how many the data set divided itself already, 0 if it did not.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Any,
        parts: LoaderParts,
        group: ProcessGroup | None,
        share: Share | None = None,
        divided: int = 0,
    ) -> None:
        self._engine = engine
        self._divided = divided
        self._loader = loader
        self._parts = parts
        self._group = group
        self._share = share
        self._generators = Generators(engine, parts)
        self._dataset = parts.dataset
        self._seed: int | None = None
        self._begun: list[list[int]] = []
        self.base = loader if share is None else self._shared(share, ())

    @property
    def _part(self) -> int:
        size = self._parts.batch_size or 1
        share = self._share
        return size // share.world if share is not None and share.split else size

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an epoch is shared out, but for the rank."""
        share = self._share or Share(drop_last=self._parts.drop_last)
        rules = [share.world, self._part, share.even, share.drop_last, share.split]
        return ["stream", *rules, self._divided]

    def given(self, batches: int) -> tuple[int, int]:
        """Give how many rounds so many batches of this rank were, and the samples of one."""
        return batches, self._part * (1 if self._share is None else self._share.world)

    def taken(self, batches: int) -> int:
        """Count the samples of so many batches of every rank, were all of them real."""
        rounds, size = self.given(batches)
        return rounds * size

    def _shared(self, share: Share, before: tuple[tuple[int, int], ...]) -> Any:
        parts, engine = self._parts, self._engine
        self._dataset = StreamShard(parts.dataset, self._part, share, before, engine.worker_info)
        batched = parts.batch_size is not None
        collate = CountingCollate(self._loader.collate_fn, batched)
        size = self._part if batched else None
        return engine.with_stream(self._loader, self._dataset, size, collate)

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream, or the sampler, which epoch begins."""
        tell_epoch(epoch, self._dataset, self._parts.sampler, self._parts.batch_sampler)

    def set_even(self, even: bool | None) -> bool:
        """Without meaning: how a stream is shared out is fixed when it is prepared."""
        return False

    def __len__(self) -> int:
        return len(self.base)

    def open(self, epoch: int, place: Place) -> Iterator[Batch]:
        """Read from a place on: what was given already is read again, and dropped."""
        base, counted = self.base, self._share is not None
        if place.before and self._parts.order != "stream":
            raise ValueError(
                "[load_state_dict] the sampler has no length: the rest of its epoch can be read "
                "on as many processes as before only; load at an epoch's start"
            )
        if place.before:
            share = self._share or Share(drop_last=self._parts.drop_last, even=False)
            base, counted = self._shared(share, place.before), True
        self._generators.restore(place.generators)
        self._begun = self._generators.states()
        seed = place.seed
        if seed is None:
            seed = agree(self._engine.draw_seed(), self._group)
        self._seed = seed
        self._engine.start_epoch(base, 0, seed)
        reading = ReadingRandom(self._engine, seed)
        here = nullcontext if uses_workers(base) else reading
        with reading():
            batches = iter(base)
        for _ in range(place.first):
            with here():
                next(batches, None)
        yield from self._look_ahead(batches, here, counted)

    @staticmethod
    def _look_ahead(batches: Iterator[Any], here: Any, counted: bool) -> Iterator[Batch]:
        end: Any = object()
        with here():
            current = next(batches, end)
        while current is not end:
            with here():
                following = next(batches, end)
            data, valid = current if counted else (current, None)
            yield Batch(data, valid, following is end)
            current = following

    def pass_over(self, epoch: int, place: Place) -> None:
        """Leave random generators as an epoch does that is behind its last batch."""
        if self._generators.states():
            for _ in self.open(epoch, place):
                pass

    def record(self) -> Place:
        """Give what fixes the epoch opened last: its seed, and the generators when it began."""
        return Place(seed=self._seed, generators=self._begun)
