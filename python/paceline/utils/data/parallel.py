# SPDX-License-Identifier: Apache-2.0
"""Iterating over a loader with worker processes: who reads which batch, and when it is handed out.

Batch n of an epoch is read by worker n modulo their number, as in PyTorch, so that a data set with
state in its workers sees the same batches in every run; a stream's batches go round the workers
that have not come to their end. Every worker is asked for at most ``prefetch_factor`` batches
beyond what was handed out. With ``in_order=False`` the worker with the least to do is asked, and
what is ready first is handed out first.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from paceline.utils.data.fetch import as_list
from paceline.utils.data.pool import Event, Pool
from paceline.utils.data.worker import BATCH, ENDED, Failure, Job

_STUCK_S = 300.0  # without `timeout`: one warning that says where the worker is, then on


class ParallelIterator:
    """Gives the batches of one epoch after the other; made by ``iter(loader)``.

    Parameters
    ----------
    loader : DataLoader
        Whose batches.
    context : multiprocessing context
        How workers are started.
    first_batch, base_seed : int
        Number of the first batch in its epoch, and what its random numbers come from.
    """

    def __init__(self, loader: Any, context: Any, first_batch: int, base_seed: int) -> None:
        self._each = max(1, loader.prefetch_factor)
        self._timeout = loader.timeout
        self._in_order = loader.in_order
        self._keeps = loader.persistent_workers
        stream = loader._is_stream
        job = Job(
            dataset=loader.dataset,
            collate=loader.collate_fn,
            batched=loader._auto_collation,
            stream=stream,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
            init_fn=loader.worker_init_fn,
            base_seed=base_seed,
        )
        self._stream = stream
        self._death: str | None = None  # how a worker ended that should not have
        self._pool = Pool(job, context, self._each)
        # Also at the interpreter's end; in a forked child the pool knows that it is not its own.
        self._close = weakref.finalize(self, Pool.close, self._pool)
        self._begin(loader, first_batch)

    @property
    def usable(self) -> bool:
        """Whether another epoch can begin with the same workers."""
        return not self._pool.closed

    def next_epoch(self, loader: Any, first_batch: int, base_seed: int) -> None:
        """Begin anew, with the workers that are there."""
        for event in self._ready.values():
            self._pool.discard(event)
        self._pool.next_epoch(base_seed)
        self._begin(loader, first_batch)

    def _begin(self, loader: Any, first_batch: int) -> None:
        self._indices: Iterator[Any] | None = None if self._stream else iter(loader._index_source())
        self._asked = self._turn = first_batch
        self._asked_of: dict[int, int] = {}  # batch asked for and not handed out: its worker
        self._ready: dict[int, Event] = {}
        self._load = [0] * len(self._pool)  # batches asked of each and not handed out
        self._open = [True] * len(self._pool)  # whose stream goes on
        self._next_worker = first_batch % len(self._pool)
        self._sampler_error: Exception | None = None
        self._fill()

    def __iter__(self) -> ParallelIterator:
        return self

    def __next__(self) -> Any:
        self._pool.check_owner()
        if self._death is not None:
            raise RuntimeError(self._death)
        while True:
            event = self._due()
            if event is not None:
                batch = self._hand_out(event)
                if batch is not _NOTHING:
                    return batch
            elif not self._asked_of:
                self._finish()
            else:
                self._wait()

    # -- asking -----------------------------------------------------------------------------------

    def _choose(self) -> int | None:
        """Choose the worker for the next batch; None if it has enough to do."""
        n = len(self._pool)
        if not self._in_order:
            free = [w for w in range(n) if self._open[w] and self._load[w] < self._each]
            return min(free, key=lambda w: (self._load[w], w)) if free else None
        for step in range(n):
            worker = (self._next_worker + step) % n
            if self._open[worker]:
                return worker if self._load[worker] < self._each else None
        return None

    def _fill(self) -> None:
        """Ask for as many batches as may be asked for."""
        while self._sampler_error is None and (worker := self._choose()) is not None:
            indices = None
            if self._indices is not None:
                try:
                    indices = as_list(next(self._indices))
                except StopIteration:
                    self._open = [False] * len(self._pool)
                    return
                except Exception as error:  # raised when what was asked for before is handed out
                    self._sampler_error = error
                    return
            self._next_worker = (worker + 1) % len(self._pool)
            self._asked_of[self._asked] = worker
            self._load[worker] += 1
            self._pool.ask(worker, self._asked, indices)
            self._asked += 1

    # -- handing out ------------------------------------------------------------------------------

    def _due(self) -> Event | None:
        if self._in_order:
            return self._ready.pop(self._turn, None)
        return self._ready.pop(next(iter(self._ready))) if self._ready else None

    def _hand_out(self, event: Event) -> Any:
        """Give the batch, or raise what it came to; `_NOTHING` at the end of a worker's stream."""
        worker = self._asked_of.pop(event.number)
        self._load[worker] -= 1
        self._turn += 1
        if event.kind == ENDED:
            self._open[worker] = False
            self._fill()
            return _NOTHING
        if event.kind == BATCH:
            batch = self._pool.unpack(event)
            self._fill()
            return batch
        self._fill()
        raise rebuilt(Failure(*event.body), worker)

    def _finish(self) -> None:
        error = self._sampler_error
        if not self._keeps:
            self._close()
        if error is not None:
            self._sampler_error = None
            raise error
        raise StopIteration

    def _wait(self) -> None:
        """Take in what the workers say, for as long as may be."""
        limit = self._timeout or _STUCK_S
        deadline: float | None = time.monotonic() + limit
        while not self._due_is_here():
            left = None if deadline is None else deadline - time.monotonic()
            try:
                events = self._pool.wait(left)
            except BaseException as error:
                if isinstance(error, RuntimeError):
                    self._death = str(error)  # what the worker was to read cannot come
                    self._close()
                raise
            for event in events:
                self._ready[event.number] = event
            if deadline is not None and not events and time.monotonic() >= deadline:
                self._late(limit)
                deadline = None

    def _due_is_here(self) -> bool:
        return self._turn in self._ready if self._in_order else bool(self._ready)

    def _late(self, limit: float) -> None:
        worker = self._asked_of[self._turn if self._in_order else min(self._asked_of)]
        stack = self._pool.stack(worker)
        who = f"worker {worker} (pid {self._pool.pids()[worker]})"
        where = f"; it is at\n{stack}" if stack else ""
        if self._timeout:
            raise RuntimeError(
                f"DataLoader timed out after {limit:g} seconds: {who} gave no batch in time{where}"
            )
        warnings.warn(
            f"[DataLoader] {who} has given no batch for {limit:g} s; waiting on (timeout= makes "
            f"this an error){where}",
            stacklevel=4,
        )


_NOTHING = object()


class _Text(str):
    """A text that shows itself as it is where an exception shows its ``repr`` (KeyError does)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def rebuilt(failure: Failure, worker: int) -> Exception:
    """Make a worker's exception anew: of its class, with its traceback as text."""
    kind = failure.kind
    name = kind if isinstance(kind, str) else kind.__name__
    text = f"Caught {name} in DataLoader worker process {worker}.\nOriginal {failure.text}"
    # A StopIteration would end the caller's loop without a word.
    if isinstance(kind, str) or issubclass(kind, StopIteration | StopAsyncIteration):
        return RuntimeError(text)
    try:
        error = kind(_Text(text)) if issubclass(kind, KeyError) else kind(text)
    except Exception:  # a class that wants other arguments
        return RuntimeError(text)
    return error if isinstance(error, Exception) else RuntimeError(text)
