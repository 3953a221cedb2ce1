# SPDX-License-Identifier: Apache-2.0
"""A rank among several machines: one that its machine's lowest speaks for, and that one.

Everything but rank 0's part, which is in ``machine_host.py``; see ``machines.py`` for the whole.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from paceline.distributed import frames, linux
from paceline.distributed.environment import Job
from paceline.distributed.frames import FrameError
from paceline.distributed.links import Links, Settings, failure, rank_list, try_send
from paceline.distributed.machine_frames import (
    FRAME_S,
    PAUSE_S,
    Machine,
    failed_fields,
    hello,
    listen,
    table_of,
    take_frame,
)
from paceline.distributed.secure import DATA, Channel, Gate, Refused, connect, dial, read_secret
from paceline.errors import RendezvousError

TICK_S = 0.02
_GRACE_S = 2.0  # others wait this much longer than rank 0, so that its better message wins
_CONNECT_S = 10.0


class _Acceptor(threading.Thread):
    """Lets in one connection from every rank elsewhere; ends when all are there, or on `stop`."""

    def __init__(self, listener: socket.socket, secret: bytes, job: bytes, ranks: set[int]) -> None:
        super().__init__(name="paceline-accept", daemon=True)
        self._gate = Gate(listener, secret, job, DATA, self._take)
        self._missing = set(ranks)
        self._stopped = False
        self.socks: dict[int, socket.socket] = {}

    def run(self) -> None:
        while self._missing and not self._stopped:
            self._gate.step(TICK_S)
        self._gate.close()

    def _take(self, channel: Channel) -> None:
        if channel.number not in self._missing:
            channel.sock.close()
            return
        self._missing.discard(channel.number)
        self.socks[channel.number] = channel.sock

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come."""
        return sorted(self._missing)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        if self.is_alive():
            self.join()


class Party:
    """What every rank does: it holds its machine's links and opens its own."""

    def __init__(self, job: Job, settings: Settings, local: Links) -> None:
        self._job = job
        self._settings = settings
        self._local = local
        self._first = job.rank - job.local_rank
        self._secret = read_secret()
        self._deadline = time.monotonic() + settings.timeout_s
        self._machines: list[Machine] = []
        self._links: list[socket.socket] = []
        self._members: dict[int, socket.socket] = {}  # by rank, of this machine
        for index, fd in enumerate(local.peer_fds):
            if fd >= 0:
                self._members[self._first + index] = socket.socket(fileno=os.dup(fd))

    def close(self) -> None:
        """Close what is not in the links."""
        for sock in [*self._members.values(), *self._links]:
            sock.close()

    def open_links(self, job_id: bytes) -> list[int]:
        """Connect to every other machine; one descriptor for each, own entry -1."""
        for machine in self._machines:
            if machine.first == self._first:
                continue
            try:
                sock = socket.create_connection((machine.address, machine.port), _CONNECT_S)
                self._links.append(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connect(sock, self._secret, DATA, self._job.rank, job_id)
                sock.setblocking(False)
            except (OSError, Refused) as error:
                raise failure(
                    f"[init_process_group] rank {self._job.rank} cannot reach the machine of "
                    f"{rank_list(machine.ranks)} at {machine.address} port {machine.port}: {error}",
                    dead=[self._job.rank],
                ) from None
        socks = iter(self._links)
        return [-1 if m.first == self._first else next(socks).fileno() for m in self._machines]

    def set_table(self, frame: dict[str, Any]) -> None:
        """Take the table of machines."""
        ends = [*frame["firsts"][1:], self._job.world]
        rows = zip(frame["firsts"], ends, frame["addresses"], frame["ports"], strict=True)
        self._machines = [Machine(first, end - first, a, p) for first, end, a, p in rows]

    def result(self, job_id: bytes, links: list[int], inbox: dict[int, socket.socket]) -> Links:
        """Give the links of the whole job; this machine's are spread over all ranks."""
        world, local = self._job.world, self._local
        found = Links(job_id.hex(), local.control_fd, [-1] * world, [-1] * world, [0] * world)
        end = self._first + self._job.local_world
        found.peer_fds[self._first : end] = local.peer_fds
        found.pidfds[self._first : end] = local.pidfds
        found.pids[self._first : end] = local.pids
        found.machine_first = [machine.first for machine in self._machines]
        found.addresses = [machine.address for machine in self._machines]
        found.link_fds = links
        found.inbox_fds = [-1] * world
        for rank, sock in inbox.items():
            sock.setblocking(False)
            found.inbox_fds[rank] = found.owner.add(sock.detach())
        for sock in self._links:
            found.owner.add(sock.detach())
        self._links = []
        found.owner.take(local.owner)
        return found


class Member(Party):
    """A rank that is not the lowest of its machine: it does as that one says."""

    def run(self) -> Links:
        """Wait for the table, open the links, wait for the word to go."""
        table = self._receive("machines")
        self.set_table(table)
        job_id = bytes.fromhex(table["job"])
        links = self.open_links(job_id)
        try_send(self._leader, frames.encode("ready"))
        self._receive("go")
        return self.result(job_id, links, {})

    @property
    def _leader(self) -> socket.socket:
        return self._members[self._first]

    def give_up(self, text: str) -> None:
        """Tell the machine's lowest rank why this one leaves."""
        failed = frames.encode("failed", text=text, dead=[self._job.rank], joined=[], missing=[])
        try_send(self._leader, failed)

    def _receive(self, kind: str) -> dict[str, Any]:
        left = self._deadline + _GRACE_S - time.monotonic()
        readable, _, _ = select.select([self._leader], [], [], max(left, 0.0))
        frame = frames.receive(self._leader, self._local.owner)[0] if readable else None
        if frame is None:
            gone = linux.has_exited(self._local.pidfds[0], 0.2)
            raise failure(
                f"[init_process_group] rank {self._first}, which speaks for this machine, "
                f"{'died' if gone else 'left' if readable else 'did not answer'} during the "
                f"rendezvous of {self._job.world} ranks",
                dead=[self._first],
            )
        if frame["kind"] == "failed":
            raise failure(
                frame["text"],
                dead=frame["dead"],
                joined=frame["joined"],
                missing=frame["missing"],
            )
        if frame["kind"] != kind:
            raise failure(f"[init_process_group] got {frame['kind']}, expected {kind}")
        return frame


class Leader(Party):
    """The lowest rank of a machine that is not rank 0's."""

    def __init__(self, job: Job, settings: Settings, local: Links) -> None:
        super().__init__(job, settings, local)
        self._ready: set[int] = set()  # members with their links
        self._acceptor: _Acceptor | None = None
        self._channel: Channel | None = None
        self._listener: socket.socket | None = None

    def close(self) -> None:
        """Close everything that is not in the links."""
        super().close()
        if self._acceptor is not None:
            self._acceptor.stop()
            for sock in self._acceptor.socks.values():
                sock.close()
        elif self._listener is not None:
            self._listener.close()
        if self._channel is not None:
            self._channel.sock.close()

    def run(self) -> Links:
        """Join rank 0's machine, open the links of this one, wait for the word to go."""
        table = self._join()
        self.set_table(table)
        assert self._channel is not None
        links = self._connect_all(self._channel.job)
        self._channel.send("ready")
        self._await_channel("go")
        return self._go(self._channel.job, links)

    # -- joining ----------------------------------------------------------------------------

    def _join(self) -> dict[str, Any]:
        while True:
            self._check_members()
            self._channel = self._reach_host()
            self._listener = listen(self._channel.sock.getsockname()[0], 0, self._deadline)
            self._channel.send("machine", **hello(self._job, self._settings, self._listener))
            frame = self._await_channel("machines", "later")
            if frame["kind"] == "machines":
                return frame
            self._listener.close()
            self._channel.sock.close()
            time.sleep(PAUSE_S)

    def _reach_host(self) -> Channel:
        """Connect to rank 0's machine, as often as it takes."""
        host, port = self._job.master_addr, self._job.port
        refusal: Refused | None = None  # says more than that rank 0 has given up by now
        while True:
            self._check_members()
            why: Exception
            try:
                return dial((host, port), self._secret, self._job.rank, FRAME_S)
            except Refused as error:
                why = refusal = error
            except OSError as error:
                why = error
            if time.monotonic() > self._deadline:
                raise failure(
                    f"[init_process_group] rank {self._job.rank} of {self._job.world} cannot join "
                    f"rank 0 at {host} port {port} (MASTER_ADDR, PACELINE_PORT) within "
                    f"{self._settings.timeout_s:g} s: {refusal or why}",
                    joined=self._own_ranks,
                    missing=[0],
                )
            time.sleep(PAUSE_S)

    @property
    def _own_ranks(self) -> list[int]:
        return list(range(self._first, self._first + self._job.local_world))

    def _await_channel(self, *kinds: str) -> dict[str, Any]:
        assert self._channel is not None
        sock = self._channel.sock
        while not select.select([sock], [], [], TICK_S)[0]:
            self._check_members()
            if time.monotonic() > self._deadline + _GRACE_S:
                raise failure(
                    f"[init_process_group] rank 0 did not answer rank {self._job.rank} within "
                    f"{self._settings.timeout_s + _GRACE_S:g} s",
                    missing=[0],
                )
        return take_frame(self._channel, [0], *kinds)

    # -- connecting -------------------------------------------------------------------------

    def _connect_all(self, job_id: bytes) -> list[int]:
        """Hand out the table, open the own links, wait for all of this machine."""
        elsewhere = {r for m in self._machines for r in m.ranks} - set(self._own_ranks)
        assert self._listener is not None
        self._acceptor = _Acceptor(self._listener, self._secret, job_id, elsewhere)
        self._acceptor.start()
        table = frames.encode("machines", **table_of(self._machines, job_id))
        for sock in self._members.values():
            try_send(sock, table)
        links = self.open_links(job_id)
        deadline = max(self._deadline, time.monotonic() + _CONNECT_S)
        while self._acceptor.missing or len(self._ready) < len(self._members):
            self._check_members()
            self._check_others()
            if time.monotonic() > deadline:
                late = sorted({*self._acceptor.missing, *self._members} - self._ready)
                raise failure(
                    f"[init_process_group] {rank_list(late)} did not connect to the machine of "
                    f"rank {self._first}",
                    missing=late,
                )
            time.sleep(0.002)
        return links

    def _check_others(self) -> None:
        assert self._channel is not None
        if select.select([self._channel.sock], [], [], 0)[0]:
            take_frame(self._channel, [0])

    def _check_members(self) -> None:
        """Hear the ranks of this machine: ready, or gone."""
        for rank, sock in self._members.items():
            if not select.select([sock], [], [], 0)[0]:
                continue
            try:
                frame = frames.receive(sock, self._local.owner)[0]
            except FrameError as error:
                raise failure(f"[init_process_group] rank {rank} sent {error}") from None
            if frame is None:
                gone = linux.has_exited(self._local.pidfds[rank - self._first], 0.05)
                raise failure(
                    f"[init_process_group] rank {rank} {'died' if gone else 'left'} during the "
                    f"rendezvous of {self._job.world} ranks",
                    dead=[rank],
                )
            if frame["kind"] == "failed":
                raise failure(frame["text"], dead=frame["dead"])
            if frame["kind"] == "ready":
                self._ready.add(rank)

    def _go(self, job_id: bytes, links: list[int]) -> Links:
        for sock in self._members.values():
            try_send(sock, frames.encode("go"))
        assert self._acceptor is not None
        self._acceptor.join()
        socks, self._acceptor.socks = self._acceptor.socks, {}
        return self.result(job_id, links, socks)

    # -- failing ----------------------------------------------------------------------------

    def give_up(self, text: str, error: RendezvousError | None = None) -> None:
        """Tell this machine and rank 0 why it is over."""
        fields = failed_fields(text, error)
        for sock in self._members.values():
            try_send(sock, frames.encode("failed", **fields))
        for channel in self._channels():
            with contextlib.suppress(OSError):
                channel.send("failed", **fields)

    def _channels(self) -> Iterator[Channel]:
        if self._channel is not None:
            yield self._channel
