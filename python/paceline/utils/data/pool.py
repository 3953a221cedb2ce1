# SPDX-License-Identifier: Apache-2.0
"""The worker processes of one loader: started, spoken with, watched and ended.

No wait is without an end: a worker that dies is seen by its pidfd, whatever it left open. Knows
nothing of the order of batches.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import select
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from paceline.utils.data.channel import Channel, socket_pair
from paceline.utils.data.segments import Parcel, SegmentReader
from paceline.utils.data.worker import BATCH, HELLO, STACK_SIGNAL, Job, Parent, run

_GRACE_S = 1.0  # for workers to finish what they are at when the loader closes
_STACK_S = 0.5


class Event(NamedTuple):
    """What a worker said about a batch."""

    kind: int
    worker: int
    epoch: int
    number: int
    body: Any


class _Member:
    """One worker, as its loader sees it."""

    def __init__(self, process: Any, channel: Channel, in_flight: int) -> None:
        self.process = process
        self.pid: int = process.pid
        self.channel = channel
        self.segments = SegmentReader(in_flight)
        self.stack_fd: int | None = None
        self.pidfd = _pidfd(process)

    def exit_code(self) -> int | None:
        """Give the exit code, waiting for it a little; None while it runs."""
        # By pidfd: multiprocessing waits for a pipe that grandchildren may hold open.
        _await([self], _GRACE_S)
        deadline = time.monotonic() + _GRACE_S
        # A fork server tells the code a moment after the end.
        while (code := self.process.exitcode) is None and time.monotonic() < deadline:
            if not _has_ended(self):
                break
            time.sleep(0.005)
        return None if code is None else int(code)

    def close(self) -> None:
        """Close what is open of it; it has ended."""
        self.channel.close()
        for fd in (self.stack_fd, self.pidfd):
            if fd is not None and fd != self.process.sentinel:
                os.close(fd)
        self.stack_fd = self.pidfd = None
        if self.process.exitcode is not None:
            self.process.close()


def _pidfd(process: Any) -> int | None:
    """Open what tells of the worker's end: a pidfd, or on an old kernel what Python has."""
    from paceline.distributed.linux import pidfd_open

    try:
        return pidfd_open(process.pid)
    except OSError:  # also where it is gone already
        return int(process.sentinel)


class Pool:
    """The workers of one loader.

    Parameters
    ----------
    job : Job
        What they do.
    context : multiprocessing context
        How they are started.
    in_flight : int
        Batches that one worker may be asked for at a time.
    """

    def __init__(self, job: Job, context: Any, in_flight: int) -> None:
        self._owner = os.getpid()
        self._members: list[_Member] = []
        self._epoch = 0
        self.closed = False
        method = context.get_start_method()
        is_main = threading.current_thread() is threading.main_thread()
        parent = Parent(os.getpid(), is_main and method != "forkserver")
        try:
            for number in range(job.num_workers):
                self._members.append(_start(context, number, job, parent, in_flight))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._members)

    @property
    def epoch(self) -> int:
        """Number of the running epoch; batches of earlier ones are dropped."""
        return self._epoch

    def pids(self) -> list[int]:
        """Give the process ids, by worker."""
        return [member.pid for member in self._members]

    def next_epoch(self, base_seed: int) -> None:
        """Begin another epoch: what is still asked for of the last one is forgotten."""
        self.check_owner()
        self._epoch += 1
        for member in self._members:
            member.channel.post(pickle.dumps((self._epoch, -1, base_seed, member.segments.freed())))

    def ask(self, worker: int, number: int, indices: Any) -> None:
        """Ask a worker for a batch."""
        member = self._members[worker]
        said = (self._epoch, number, indices, member.segments.freed())
        member.channel.post(pickle.dumps(said))

    def unpack(self, event: Event) -> Any:
        """Give the batch of an event."""
        return self._members[event.worker].segments.unpack(event.body)

    def check_owner(self) -> None:
        """Fail in a process that was forked from the one whose workers these are."""
        if self._owner != os.getpid():
            raise RuntimeError(
                f"[DataLoader] the iterator belongs to process {self._owner}: got a call in "
                f"process {os.getpid()}, which was forked from it; iterate anew there"
            )

    # -- waiting ----------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Wait until a worker says something; gives nothing when the time is up.

        Raises
        ------
        RuntimeError
            When a worker died: which, its pid, and how.
        """
        self.check_owner()
        events = [event for i in range(len(self)) for event in self._heard(i)]
        if events:
            return events
        poller = select.poll()
        for member in self._members:
            out = select.POLLOUT if member.channel.wants_to_write else 0
            poller.register(member.channel.fileno(), select.POLLIN | out)
            if member.pidfd is not None:
                poller.register(member.pidfd, select.POLLIN)
        ready = dict(poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000.0))
        for i, member in enumerate(self._members):
            mask = ready.get(member.channel.fileno(), 0)
            if mask & select.POLLOUT:
                member.channel.flush()
            gone = member.pidfd in ready
            if mask & ~select.POLLOUT or gone:
                while member.channel.read(wait=False) and gone:
                    pass
                events += self._heard(i)
                if (member.channel.closed or gone) and not events:
                    raise RuntimeError(self._epitaph(i))
        return events

    def _heard(self, worker: int) -> Iterator[Event]:
        member = self._members[worker]
        while (said := member.channel.message()) is not None:
            data, fds = said
            kind, epoch, number, body = pickle.loads(data)
            if kind == HELLO:
                member.stack_fd = fds[0] if fds else None
                continue
            if kind == BATCH:
                body = Parcel(*body)
                member.segments.register(body, fds)
                if epoch != self._epoch:
                    member.segments.discard(body)
            if epoch == self._epoch:
                yield Event(kind, worker, epoch, number, body)

    def discard(self, event: Event) -> None:
        """Forget a batch that nobody will read."""
        if event.kind == BATCH:
            self._members[event.worker].segments.discard(event.body)

    def _epitaph(self, worker: int) -> str:
        code = self._members[worker].exit_code()
        who = f"[DataLoader] worker {worker} (pid {self._members[worker].pid})"
        if code is None or code >= 0:
            how = "closed its socket" if code is None else f"ended with exit code {code}"
            return f"{who} {how} in the middle of an epoch: got no batch, expected one"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unnamed"
        hint = "; the system does so when memory runs out" if -code == signal.SIGKILL else ""
        return f"{who} was killed by signal {-code} ({name}): got no batch, expected one{hint}"

    def stack(self, worker: int) -> str:
        """Tell where the threads of a worker are; empty where it cannot say."""
        member = self._members[worker]
        if member.stack_fd is None:
            return ""
        before = os.fstat(member.stack_fd).st_size
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, STACK_SIGNAL)
        deadline = time.monotonic() + _STACK_S
        size, seen = before, -1
        while time.monotonic() < deadline and (size == before or size != seen):
            seen = size
            time.sleep(0.02)
            size = os.fstat(member.stack_fd).st_size
        text = os.pread(member.stack_fd, size - before, before).decode(errors="replace")
        # What stands below the worker's own loop is how it was started.
        return text.partition(", in serve" if ", in serve" in text else " in serve\n")[0]

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers: each may finish its batch, within a second; then it is killed."""
        if self.closed or self._owner != os.getpid():
            return
        self.closed = True
        for member in self._members:
            member.channel.close()
        try:
            _await(self._members, _GRACE_S)
        finally:
            for member in self._members:
                member.process.kill()
            for member in self._members:
                member.exit_code()  # a killed process may still wait for a disk
                member.close()
            self._members.clear()


def _await(members: list[_Member], grace_s: float) -> None:
    """Wait until all have ended, or the time is up."""
    deadline = time.monotonic() + grace_s
    alive = {member.pidfd for member in members if member.pidfd is not None}
    while alive and (left := deadline - time.monotonic()) > 0:
        alive -= set(multiprocessing.connection.wait(list(alive), left))


def _has_ended(member: _Member) -> bool:
    return member.pidfd is not None and member.pidfd in multiprocessing.connection.wait(
        [member.pidfd], 0
    )


def _start(context: Any, number: int, job: Job, parent: Parent, in_flight: int) -> _Member:
    ours, theirs = socket_pair()
    process = context.Process(target=run, args=(theirs, number, job, parent), daemon=True)
    # Blocked until the worker ignores it, so that an early Ctrl-C prints no traceback there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: our own threads take no lock that a worker needs.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Member(process, Channel(ours), in_flight)
