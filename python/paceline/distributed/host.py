# SPDX-License-Identifier: Apache-2.0
"""Rank 0's side of the rendezvous: listen, check who comes, hand out descriptors, watch.

One selector loop on the caller's thread. A newcomer that cannot belong to this job is refused and
the job goes on waiting; a rank that is ours and disagrees, dies or gives up ends the rendezvous
for everybody, with one text. See ``rendezvous.py`` for the whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import selectors
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from paceline.distributed import frames, linux
from paceline.distributed.environment import Job
from paceline.distributed.frames import Descriptors, FrameError
from paceline.distributed.links import (
    PROTOCOL,
    Links,
    Settings,
    failure,
    rank_list,
    socket_name,
    try_send,
)
from paceline.errors import RendezvousError

_HELLO_S = 5.0  # a connection that says nothing for so long is closed
_MAX_PENDING = 64  # connections without a hello; more are closed unread
_BIND_RETRY_S = 0.5  # an earlier job on this port may be on its way out
_REPORT_S = 5.0  # after so long, one line on stderr says who is missing
_DISTRIBUTE_S = 30.0  # nobody computes between hello and go, so this is ample
_DEATH_GRACE_S = 0.05


@dataclass(eq=False)
class _Connection:
    """A socket that somebody opened to us, and what we know of that process."""

    sock: socket.socket
    pid: int
    pidfd: int
    since: float
    rank: int = -1  # until its hello is accepted
    is_ready: bool = False


class Host:
    """Rank 0, from listening to holding its links. Used once, as a context."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings
        self._own = Descriptors()  # handed over to the links at the end
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._pending: set[_Connection] = set()
        self._ranks: dict[int, _Connection] = {}
        self._job_id = secrets.token_hex(16)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, tb: object) -> None:
        if kind is not None and kind is not RendezvousError:
            text = f"{kind.__name__}: {value}".removesuffix(": ")
            self._tell_failed(f"[init_process_group] rank 0 gave up: {text}", ())
        self._close_listener()
        for connection in [*self._pending, *self._ranks.values()]:
            connection.sock.close()
        self._selector.close()
        self._own.close()

    def run(self) -> Links:
        """Wait for all ranks, then give each its links.

        Raises
        ------
        RendezvousError
            See ``rendezvous``; all ranks that had joined raise the same text.
        """
        self._listen()
        self._gather()
        self._close_listener()
        # From here on a connection that is still pending is nobody's: its owner tries again.
        for connection in list(self._pending):
            self._drop(connection)
        return self._distribute()

    # -- listening --------------------------------------------------------------------------

    def _listen(self) -> None:
        name = socket_name(self._job, self._settings.label)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deadline = time.monotonic() + _BIND_RETRY_S
        try:
            while True:
                try:
                    sock.bind(name)
                    break
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    if time.monotonic() > deadline:
                        raise self._name_taken(name) from None
                    time.sleep(0.02)
            sock.listen(max(self._job.world, 16))
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._listener = sock
        self._selector.register(sock, selectors.EVENT_READ, None)

    def _name_taken(self, name: bytes) -> RendezvousError:
        holder = "another process"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.settimeout(0.2)
            try:
                probe.connect(name)
                who = linux.peer_credentials(probe)
                holder = f"pid {who.pid} of user {linux.user_name(who.uid)}"
            except OSError:
                pass
        return failure(
            f"[init_process_group] {self._job.where} is used by another job: rank 0 of it is "
            f"{holder}, this one is pid {os.getpid()}; choose another MASTER_PORT, or give each "
            "job a PACELINE_RUN_ID of its own",
            joined=[0],
        )

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    # -- waiting for everybody --------------------------------------------------------------

    @property
    def _joined(self) -> list[int]:
        return sorted([0, *self._ranks])

    @property
    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self._job.world) if rank not in self._ranks]

    def _gather(self) -> None:
        start = time.monotonic()
        deadline = start + self._settings.timeout_s
        report_at: float | None = start + _REPORT_S
        while self._missing:
            now = time.monotonic()
            if now > deadline:
                raise self._fail(
                    f"{len(self._joined)} of {self._job.world} ranks came within "
                    f"{self._settings.timeout_s:g} s at {self._job.where}"
                )
            if report_at is not None and now > report_at:
                report_at = None
                self._report()
            self._close_silent(now)
            self._step(min(deadline, report_at or deadline, now + 1.0) - now)

    def _report(self) -> None:
        print(
            f"paceline: rank 0 waits for {rank_list(self._missing)} of {self._job.world} at "
            f"{self._job.where} (gives up after {self._settings.timeout_s:g} s)",
            file=sys.stderr,
            flush=True,
        )

    def _step(self, wait_s: float) -> None:
        for key, _ in self._selector.select(max(wait_s, 0.0)):
            if key.data is None:
                self._accept()
            elif key.data in self._pending:
                self._read_hello(key.data)
            elif key.data.rank in self._ranks:
                self._read_member(key.data)

    def _close_silent(self, now: float) -> None:
        for connection in list(self._pending):
            if now - connection.since > _HELLO_S:
                self._drop(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        who = linux.peer_credentials(sock)
        if who.uid != os.geteuid() or len(self._pending) >= _MAX_PENDING:
            sock.close()
            return
        if who.pid <= 0:
            try_send(sock, frames.encode("refused", text=linux.OTHER_PID_NAMESPACE))
            sock.close()
            return
        try:
            pidfd = self._own.add(linux.pidfd_open(who.pid))
        except ProcessLookupError:  # it is gone already
            sock.close()
            return
        sock.setblocking(False)
        connection = _Connection(sock, who.pid, pidfd, time.monotonic())
        self._pending.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection, refusal: str = "") -> None:
        if refusal:
            try_send(connection.sock, frames.encode("refused", text=refusal))
        self._selector.unregister(connection.sock)
        self._pending.discard(connection)
        connection.sock.close()
        self._own.remove(connection.pidfd)

    def _read_hello(self, connection: _Connection) -> None:
        try:
            hello, fds = frames.receive(connection.sock, self._own)
            if hello is None:
                self._drop(connection)
                return
            if fds or hello["kind"] != "hello":
                raise FrameError(f"a {hello['kind']} frame, expected hello")
        except FrameError as error:
            self._drop(connection, f"[init_process_group] rank 0 was sent {error}")
            return
        refusal = self._refusal(hello, connection)
        if refusal:
            self._drop(connection, refusal)
            return
        disagreement = self._disagreement(hello)
        self._pending.discard(connection)
        connection.rank = hello["rank"]
        self._ranks[connection.rank] = connection
        if disagreement:
            raise self._fail(disagreement)
        try_send(connection.sock, frames.encode("joined"))

    def _refusal(self, hello: dict[str, Any], connection: _Connection) -> str:
        """Why the newcomer cannot be of this job; empty if it may be."""
        rank, pid = hello["rank"], connection.pid
        if hello["pid"] != pid:
            return (
                f"[init_process_group] rank {rank} runs in another pid namespace: it says pid "
                f"{hello['pid']}, rank 0 sees pid {pid}; start all ranks in one container"
            )
        if rank in self._ranks or rank == 0:
            holder = self._ranks[rank].pid if rank in self._ranks else os.getpid()
            return (
                f"[init_process_group] rank {rank} is taken: pid {pid} came as rank {rank}, which "
                f"is pid {holder} in job {self._job_id[:8]} at {self._job.where}; two jobs on "
                "one port need another MASTER_PORT or a PACELINE_RUN_ID of their own"
            )
        return ""

    def _disagreement(self, hello: dict[str, Any]) -> str:
        """In what a rank of this job differs from rank 0; empty if in nothing."""
        rank = hello["rank"]
        ours: dict[str, object] = {
            "world": self._job.world,
            "protocol": PROTOCOL,
            "version": self._settings.version,
            "config": self._settings.config,
            "machine": linux.same_machine_id(),
        }
        for name, mine in ours.items():
            if hello[name] != mine:
                what = "WORLD_SIZE" if name == "world" else name
                return (
                    f"ranks disagree on {what}: got {hello[name]} on rank {rank}, {mine} on rank 0"
                )
        if not 0 < rank < self._job.world:
            return f"got rank {rank}, expected 0 to {self._job.world - 1}"
        return ""

    # -- a rank that had joined -------------------------------------------------------------

    def _read_member(self, connection: _Connection) -> None:
        """Read what a waiting rank says: that it is ready, why it leaves, or its end."""
        try:
            frame, _ = frames.receive(connection.sock, self._own)
        except FrameError as error:
            raise self._fail(f"rank {connection.rank} sent {error}") from None
        if frame is None:
            raise self._lost(connection)
        if frame["kind"] == "failed":
            raise self._gave_up(connection, frame["text"])
        if frame["kind"] != "ready":
            raise self._fail(f"rank {connection.rank} is out of step: it sent {frame['kind']}")
        connection.is_ready = True

    def _gave_up(self, connection: _Connection, why: str) -> RendezvousError:
        return self._fail(
            f"rank {connection.rank} (pid {connection.pid}) gave up: {why}", (connection.rank,)
        )

    def _lost(self, connection: _Connection) -> RendezvousError:
        # What it said before it closed may not have been read yet.
        with contextlib.suppress(BlockingIOError, FrameError):
            while (last := frames.receive(connection.sock, self._own)[0]) is not None:
                if last["kind"] == "failed":
                    return self._gave_up(connection, last["text"])
        has_died = linux.has_exited(connection.pidfd, _DEATH_GRACE_S)
        return self._fail(
            f"rank {connection.rank} (pid {connection.pid}) "
            f"{'died' if has_died else 'left'} during the rendezvous",
            (connection.rank,),
        )

    def _fail(self, what: str, dead: tuple[int, ...] = ()) -> RendezvousError:
        """Tell everybody that it is over; the caller raises what this returns."""
        text = (
            f"[init_process_group] {what}; joined: {rank_list(self._joined)}; "
            f"missing: {rank_list(self._missing)}"
        )
        self._tell_failed(text, dead)
        return failure(text, dead=dead, joined=self._joined, missing=self._missing)

    def _tell_failed(self, text: str, dead: tuple[int, ...]) -> None:
        frame = frames.encode(
            "failed", text=text, dead=list(dead), joined=self._joined, missing=self._missing
        )
        for connection in [*self._ranks.values(), *self._pending]:
            try_send(connection.sock, frame)

    # -- handing out ------------------------------------------------------------------------

    def _distribute(self) -> Links:
        world = self._job.world
        pids = [os.getpid(), *(self._ranks[rank].pid for rank in range(1, world))]
        links = Links(self._job_id, -1, [-1] * world, [-1] * world, pids)
        nbytes = self._settings.control_bytes(world, world)
        links.control_fd = self._own.add(linux.memfd_create("paceline", nbytes))
        own_pidfd = self._own.add(linux.pidfd_open(os.getpid()))
        links.pidfds[1:] = [self._ranks[rank].pidfd for rank in range(1, world)]
        welcome = frames.encode("welcome", job=self._job_id, pids=pids)
        for rank in range(1, world):
            self._send(rank, welcome, (links.control_fd,))
        for low in range(world):
            for high in range(low + 1, world):
                ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with ends[0], ends[1]:
                    low_pidfd = own_pidfd if low == 0 else links.pidfds[low]
                    self._link(high, low, ends[1].fileno(), low_pidfd)
                    if low == 0:
                        links.peer_fds[high] = self._own.add(ends[0].detach())
                    else:
                        self._link(low, high, ends[0].fileno(), links.pidfds[high])
        self._await_ready()
        for rank in range(1, world):
            self._send(rank, frames.encode("go"))
        self._own.remove(own_pidfd)
        links.owner, self._own = self._own, Descriptors()
        return links

    def _link(self, to: int, peer: int, sock_fd: int, pidfd: int) -> None:
        self._send(to, frames.encode("link", rank=peer), (sock_fd, pidfd))

    def _send(self, rank: int, frame: bytes, fds: tuple[int, ...] = ()) -> None:
        connection = self._ranks[rank]
        deadline = time.monotonic() + _DISTRIBUTE_S
        while True:
            try:
                frames.send(connection.sock, frame, fds)
                return
            except (BrokenPipeError, ConnectionResetError):
                raise self._lost(connection) from None
            except OSError as error:
                # Its buffer is full, or so many descriptors are under way that the kernel's
                # limit (RLIMIT_NOFILE per user) is reached; both pass as the others read.
                is_busy = error.errno in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS)
                if not is_busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _DISTRIBUTE_S
        while late := [c.rank for c in self._ranks.values() if not c.is_ready]:
            left = deadline - time.monotonic()
            if left <= 0.0:
                raise self._fail(f"{rank_list(late)} did not answer within {_DISTRIBUTE_S:g} s")
            self._step(left)
