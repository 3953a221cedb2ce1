# SPDX-License-Identifier: Apache-2.0
"""Rank 0 reads, the others receive.

Per round rank 0 sends a header (the structure of every rank's batch, how much of it is real, and
whether it is the last), then the tensors. What fails on rank 0 while reading travels in the
header, so the others raise instead of waiting. Only rank 0 looks ahead, in its own memory: a loop
that all ranks leave early leaves nothing half sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from .channel import Channel
from .randomness import ReadingRandom
from .rounds import Round, head_of, join_round, share_out
from .shards import Share
from .sources import Batch, Place, Source, uses_workers
from .streams import StreamSource

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine

__all__ = ["DispatchSource"]

SliceFn = Callable[..., Any]


@dataclass(frozen=True)
class _Note:
    """What goes with a round."""

    valid: list[int | None]
    last: bool
    rows: int  # of the whole, where a function of the script's cuts it


class DispatchSource:
    """Batches that rank 0 reads for all.

    Parameters
    ----------
    engine : Engine
        Whose tensors.
    group : ProcessGroup
        Who takes part.
    inner : Source
        What rank 0 reads from, as if it were alone; on other ranks it only knows lengths.
    share : Share
        The rules.
    slice_fn : callable, optional
        Cuts this rank's part of the whole round:
        ``slice_fn(batch, slice, process_index=..., num_processes=...)``.
    """

    def __init__(
        self,
        engine: Engine,
        group: ProcessGroup,
        inner: Source,
        share: Share,
        slice_fn: SliceFn | None = None,
    ) -> None:
        self.base = inner.base
        self._engine = engine
        self._group = group
        self._inner = inner
        self._share = share
        self._slice_fn = slice_fn
        self._channel = Channel(engine, group)
        # Each round is read with random numbers of its own, so that the first can be read again.
        self._own_random = not isinstance(inner, StreamSource) and not uses_workers(inner.base)
        self._seed: int | None = None
        self._per_round = 1 if share.split else share.world

    @property
    def rules(self) -> list[Any]:
        """Everything that decides how an epoch is shared out, but for the rank."""
        share = self._share
        own = ["dispatch", share.world, share.even, share.drop_last, share.split]
        return [*own, *self._inner.rules]

    def given(self, batches: int) -> tuple[int, int]:
        """Give how many rounds so many batches of this rank were, and the samples of one."""
        return self._inner.given(batches * self._per_round)

    def taken(self, batches: int) -> int:
        """Count the real samples (or items) of so many batches of every rank."""
        return self._inner.taken(batches * self._per_round)

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts of the loader which epoch begins."""
        self._inner.set_epoch(epoch)

    def set_even(self, even: bool | None) -> bool:
        """Without meaning: rank 0 shares every round out."""
        return False

    def __len__(self) -> int:
        full, rest = divmod(len(self._inner), self._per_round)
        return full + (rest > 0 and not self._share.drop_last)

    def pass_over(self, epoch: int, place: Place) -> None:
        """Leave random generators as an epoch does that is behind its last batch."""
        if self._group.rank == 0:
            first = place.first * self._per_round
            self._inner.pass_over(epoch, replace(place, first=first))

    def record(self) -> Place:
        """Give what fixes the epoch opened last; of use on rank 0, which reads."""
        record = self._inner.record()
        return record if self._seed is None else replace(record, seed=self._seed)

    def open(self, epoch: int, place: Place) -> Iterator[Batch]:
        """Read from a place on."""
        if self._group.rank != 0:
            return self._receive()
        return self._read(epoch, place)

    def _receive(self) -> Iterator[Batch]:
        while (message := self._channel.receive()) is not None:
            data, note = message
            if self._slice_fn is None and data is None:
                return  # an uneven last round had nothing for this rank
            yield self._own(data, note)
            if note.last:
                return

    def _own(self, data: Any, note: _Note) -> Batch:
        rank, world = self._group.rank, self._share.world
        if self._slice_fn is not None:
            part = -(-note.rows // world)
            cut = slice(rank * part, (rank + 1) * part)
            data = self._slice_fn(data, cut, process_index=rank, num_processes=world)
        return Batch(data, note.valid[rank], note.last)

    # --- rank 0 ---------------------------------------------------------------------------------

    def _read(self, epoch: int, place: Place) -> Iterator[Batch]:
        rounds = self._rounds(epoch, place)
        while True:
            try:
                found = next(rounds, None)
            except Exception as error:
                self._channel.fail(error)
                raise
            if found is None:
                self._channel.end()
                return
            round_, note = found
            yield self._own(self._channel.send(round_.parts, note), note)
            if note.last:
                return

    def _rounds(self, epoch: int, place: Place) -> Iterator[tuple[Round, _Note]]:
        per, share = self._per_round, self._share
        # A stream is read again from its start in any case: here, so that its head is seen.
        skip = place.first if isinstance(self._inner, StreamSource) else 0
        inner_place = replace(place, first=(place.first - skip) * per)
        if self._own_random:
            self._seed = self._engine.draw_seed() if place.seed is None else place.seed
            inner_place = replace(inner_place, seed=None)
        opened = self._numbered(self._inner.open(epoch, inner_place), inner_place.first)
        head = None
        for at, (batches, last) in enumerate(self._grouped(opened)):
            if at == 0 and place.first == skip:
                head = head_of(batches, share.world)
            if at < skip:
                continue
            if head is None and last and share.even:
                head = self._head(epoch, place)
            yield self._cut(batches, last, head)

    def _numbered(self, opened: Iterator[Batch], first: int) -> Iterator[Batch]:
        """Read with random numbers that depend on the epoch's seed and the batch's number."""
        if self._seed is None:
            yield from opened
            return
        for at in count(first):
            with ReadingRandom(self._engine, self._seed + at)():
                batch = next(opened, None)
            if batch is None:
                return
            yield batch

    def _grouped(self, opened: Iterator[Batch]) -> Iterator[tuple[list[Any], bool]]:
        """Group what rank 0 reads into rounds, each with whether it is the last."""
        per, drop_last = self._per_round, self._share.drop_last
        held: list[Any] = []  # a round of a stream that may be the last, if the next is not full
        batches: list[Any] = []
        for batch in opened:
            batches.append(batch.data)
            if len(batches) < per and not batch.last:
                continue
            if len(batches) < per and drop_last:
                break
            if held:
                yield held, False
                held = []
            if drop_last and batch.left is None and not batch.last:
                held = batches
            else:
                last = batch.last or (drop_last and batch.left is not None and batch.left < per)
                yield batches, last
                if last:
                    return
            batches = []
        if held:
            yield held, True

    def _head(self, epoch: int, place: Place) -> Any:
        """Read the epoch's first round again, where reading began in the middle."""
        again = replace(self._inner.record(), before=place.before)
        opened = self._numbered(self._inner.open(epoch, again), 0)
        found = [batch.data for batch in islice(opened, self._per_round)]
        return head_of(found, self._share.world)

    def _cut(self, batches: Sequence[Any], last: bool, head: Any) -> tuple[Round, _Note]:
        share = self._share
        if self._slice_fn is None:
            shared = share_out(batches, last, head, share)
            return shared, _Note(shared.valid, last, 0)
        # A function of the script's cuts: every rank gets the whole.
        whole, rows, real = join_round(batches, head if head is not None else batches[0], share)
        part = -(-rows // share.world)
        valid = [
            None if (rank + 1) * part <= real else max(0, real - rank * part)
            for rank in range(share.world)
        ]
        return Round([whole], valid), _Note(valid, last, rows)
