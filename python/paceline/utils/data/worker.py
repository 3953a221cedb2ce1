# SPDX-License-Identifier: Apache-2.0
"""What a worker process does: reads the batches it is told to, and hands them over.

It ends when its loader closes the socket, and is killed with its loader's process. Ctrl-C is the
loader's to handle: a worker ignores it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from paceline import _C
from paceline.utils.data.channel import Channel
from paceline.utils.data.fetch import END, Reader, StreamReader, reader
from paceline.utils.data.seeding import seed_batch, seed_worker
from paceline.utils.data.segments import Parcel, SegmentWriter

_PR_SET_PDEATHSIG = 1
#: On this signal a worker writes where each of its threads is into the file it gave its loader.
STACK_SIGNAL = signal.SIGRTMAX - 3


@dataclass
class WorkerInfo:
    """Which worker this process is.

    Attributes
    ----------
    id : int
        0 to `num_workers` - 1.
    num_workers : int
        How many the loader has.
    seed : int
        The epoch's base seed + `id`.
    dataset : Dataset
        This process's own copy.
    """

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """Tell which worker of a `DataLoader` this process is; None where it is none.

    An `IterableDataset` uses it to give each worker another part of the stream.
    """
    return _info


@dataclass(frozen=True)
class Job:
    """What all workers of a loader need to know; it crosses to them once."""

    dataset: Any
    collate: Any
    batched: bool
    stream: bool
    batch_size: int | None
    drop_last: bool
    num_workers: int
    init_fn: Callable[[int], None] | None
    base_seed: int


@dataclass(frozen=True)
class Parent:
    """Whose death ends the worker, and how it hears of it.

    ``signalled``: by the kernel's signal, which comes when the *thread* that started the worker
    ends; so only where that is the main thread, and the worker is its direct child.
    """

    pid: int
    signalled: bool


class Failure(NamedTuple):
    """An exception on its way to the loader."""

    kind: Any  # the class, or its name where it cannot be pickled
    text: str  # the formatted traceback


# Kinds of messages to the loader: (kind, epoch, number of the batch, body).
HELLO, BATCH, FAILED, ENDED = range(4)


def run(sock: socket.socket, worker: int, job: Job, parent: Parent) -> None:
    """Serve until the loader closes its end: the body of a worker process."""
    _end_with(parent)
    _own_signals()
    _C.set_num_threads(1)
    channel = Channel(sock)
    sock.setblocking(True)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _Worker(channel, worker, job).serve()


def _end_with(parent: Parent) -> None:
    if parent.signalled:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent.pid:  # it died before the line above
            os._exit(1)
        return
    from paceline.distributed.linux import has_exited, pidfd_open

    try:
        pidfd = pidfd_open(parent.pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        while not has_exited(pidfd, 60.0):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="paceline-parent", daemon=True).start()


def _own_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _stack_file() -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    fd = os.memfd_create("paceline-stack")
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True)
    return fd


def failure(error: BaseException, where: str) -> Failure:
    """Take an exception apart so that it can cross."""
    kind: Any = type(error)
    try:
        if pickle.loads(pickle.dumps(kind)) is not kind:
            kind = kind.__qualname__
    except Exception:  # a class that has no name at the top of its module
        kind = kind.__qualname__
    error.add_note(where)
    return Failure(kind, "".join(traceback.format_exception(error)))


class _Worker:
    """One worker: its tasks, and what it needs to do them."""

    def __init__(self, channel: Channel, number: int, job: Job) -> None:
        self._channel = channel
        self._number = number
        self._job = job
        self._segments = SegmentWriter()
        self._tasks: deque[tuple[int, int, Any]] = deque()
        self._epoch = 0
        self._base_seed = job.base_seed
        self._read: Reader | None = None
        self._broken: Failure | None = None  # worker_init_fn or iter(dataset) failed
        self._is_set_up = False

    def serve(self) -> None:
        stack = _stack_file()
        hello = pickle.dumps((HELLO, 0, -1, None))
        self._channel.send(hello, [] if stack is None else [stack])
        self._try(self._start)
        while self._next_tasks():
            self._do(*self._tasks.popleft())

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._broken = failure(error, self._where("before its first batch"))

    def _where(self, what: str) -> str:
        return f"[DataLoader] worker {self._number} (pid {os.getpid()}), {what}"

    def _start(self) -> None:
        global _info
        job, seed = self._job, self._base_seed + self._number
        seed_worker(self._base_seed, self._number)
        _info = WorkerInfo(self._number, job.num_workers, seed, job.dataset)
        if job.init_fn is not None:
            job.init_fn(self._number)
        self._is_set_up = True
        self._open()

    def _open(self) -> None:
        job = self._job
        if job.stream:
            stream = StreamReader(job.dataset, job.collate, job.batch_size, job.drop_last)
            self._read = lambda indices: stream()
        else:
            self._read = reader(job.dataset, job.collate, job.batched)

    def _next_epoch(self, epoch: int, base_seed: int) -> None:
        self._tasks.clear()  # of an epoch that was left
        self._epoch, self._base_seed = epoch, base_seed
        if _info is not None:
            _info.seed = base_seed + self._number
        if self._job.stream and self._is_set_up:
            self._broken = None
            seed_worker(base_seed, self._number)
            self._try(self._open)

    def _next_tasks(self) -> bool:
        """Take in all that the loader has said, and wait for it if there is nothing to do."""
        while not self._channel.closed:
            said = self._channel.message()
            if said is not None:
                self._hear(*pickle.loads(said[0]))
            elif not self._channel.read(wait=not self._tasks) and self._tasks:
                return not self._channel.closed
        return False

    def _hear(self, epoch: int, number: int, body: Any, freed: list[int]) -> None:
        self._segments.release(freed)
        if number < 0:
            self._next_epoch(epoch, body)
        else:
            self._tasks.append((epoch, number, body))

    def _do(self, epoch: int, number: int, indices: Any) -> None:
        if self._broken is not None:
            self._say(FAILED, epoch, number, self._broken)
            return
        try:
            seed_batch(self._base_seed, number)
            assert self._read is not None
            batch = self._read(indices)
            if batch is END:
                self._say(ENDED, epoch, number, None)
                return
            self._segments.pack(batch, lambda p, fds: self._say(BATCH, epoch, number, p, fds))
        except (BrokenPipeError, ConnectionResetError) as error:
            if self._loader_is_gone():
                raise
            self._say(FAILED, epoch, number, self._failed(error, number))
        except Exception as error:
            self._say(FAILED, epoch, number, self._failed(error, number))

    def _failed(self, error: Exception, number: int) -> Failure:
        return failure(error, self._where(f"batch {number}"))

    def _loader_is_gone(self) -> bool:
        self._channel.read(wait=False)
        return self._channel.closed

    def _say(
        self, kind: int, epoch: int, number: int, body: Any, fds: list[int] | None = None
    ) -> None:
        plain = tuple(body) if isinstance(body, Parcel | Failure) else body
        self._channel.send(pickle.dumps((kind, epoch, number, plain)), fds or ())
