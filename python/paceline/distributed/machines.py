# SPDX-License-Identifier: Apache-2.0
"""How the machines of a job find one another, and each rank its connections to the others.

On every machine the ranks meet first, as ``rendezvous.py`` says; the lowest of them then speaks for
the machine. Rank 0 listens on one address, MASTER_ADDR, and one port; the others connect, both
sides prove that they hold the shared secret (``secure.py``), and each machine says which ranks it
has and where it listens for data. Rank 0 answers with the table of all machines. Then every rank
opens one connection to each other machine, proved the same way, and hands it to the core. When all
have theirs, rank 0 says go.

Whoever fails says so to its machine, which tells rank 0, which tells everybody: all raise one text.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paceline.distributed import frames, linux
from paceline.distributed.environment import Job
from paceline.distributed.frames import FrameError
from paceline.distributed.links import PROTOCOL, Links, Settings, failure, rank_list, try_send
from paceline.distributed.secure import CONTROL, DATA, Channel, Gate, Refused, connect, read_secret
from paceline.errors import RendezvousError

_PAUSE_S = 0.05  # between two attempts to reach rank 0's machine
_TICK_S = 0.02
_FRAME_S = 5.0  # for a frame that the other end is to send at once
_GRACE_S = 2.0  # others wait this much longer than rank 0, so that its better message wins
_REPORT_S = 5.0
_CONNECT_S = 10.0


@dataclass
class Machine:
    """One machine of the job: its ranks, and where it listens for data."""

    first: int
    count: int
    address: str
    port: int
    channel: Channel | None = None  # of rank 0, to the others
    is_ready: bool = False

    @property
    def ranks(self) -> list[int]:
        """The ranks on it."""
        return list(range(self.first, self.first + self.count))


def listen(address: str, port: int, deadline: float) -> socket.socket:
    """Listen on exactly one address; another group of ours may be about to leave the port."""
    infos = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    family, kind, proto, _, where = infos[0]
    while True:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(128)
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline or port == 0:
                raise failure(
                    f"[init_process_group] cannot listen on {address} port {port}: "
                    f"{error.strerror}; MASTER_ADDR must be an address of rank 0's machine, and "
                    "PACELINE_PORT (default MASTER_PORT + 1) a free port there"
                ) from None
            time.sleep(_PAUSE_S)


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
            self._gate.step(_TICK_S)
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


class _Party:
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


class Member(_Party):
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


class Leader(_Party):
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
            time.sleep(_PAUSE_S)

    def _reach_host(self) -> Channel:
        """Connect to rank 0's machine, as often as it takes."""
        host, port = self._job.master_addr, self._job.port
        while True:
            self._check_members()
            why: Exception
            try:
                sock = socket.create_connection((host, port), _FRAME_S)
                try:
                    return connect(sock, self._secret, CONTROL, self._job.rank)
                except Refused as error:
                    sock.close()
                    why = error
                except BaseException:
                    sock.close()
                    raise
            except OSError as error:
                why = error
            if time.monotonic() > self._deadline:
                raise failure(
                    f"[init_process_group] rank {self._job.rank} of {self._job.world} cannot join "
                    f"rank 0 at {host} port {port} (MASTER_ADDR, PACELINE_PORT) within "
                    f"{self._settings.timeout_s:g} s: {why}",
                    joined=self._own_ranks,
                    missing=[0],
                )
            time.sleep(_PAUSE_S)

    @property
    def _own_ranks(self) -> list[int]:
        return list(range(self._first, self._first + self._job.local_world))

    def _await_channel(self, *kinds: str) -> dict[str, Any]:
        assert self._channel is not None
        sock = self._channel.sock
        while not select.select([sock], [], [], _TICK_S)[0]:
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


class Host(Leader):
    """Rank 0: it listens for the other machines and tells all of them about each other."""

    def run(self) -> Links:
        """Wait for every machine, then give them the table and the word to go."""
        job_id = secrets.token_bytes(16)
        address = str(socket.getaddrinfo(self._job.master_addr, 0)[0][4][0])
        self._listener = listen(address, 0, self._deadline)
        own = hello(self._job, self._settings, self._listener)
        self._machines = [Machine(0, own["count"], own["address"], own["port"])]
        retry_until = min(self._deadline, time.monotonic() + _FRAME_S)
        listener = listen(address, self._job.port, retry_until)
        gate = Gate(listener, self._secret, job_id, CONTROL, self._take)
        try:
            self._gather(gate, address)
        finally:
            gate.close()
        self._machines.sort(key=lambda machine: machine.first)
        for channel in self._channels():
            channel.send("machines", **table_of(self._machines, job_id))
        links = self._connect_all(job_id)
        while any(not machine.is_ready for machine in self._machines[1:]):
            self._check_members()
            self._check_others()
            time.sleep(0.002)
        for channel in self._channels():
            channel.send("go")
        return self._go(job_id, links)

    def close(self) -> None:
        """Close everything that is not in the links."""
        super().close()
        for channel in self._channels():
            channel.sock.close()

    def _channels(self) -> Iterator[Channel]:
        for machine in self._machines:
            if machine.channel is not None:
                yield machine.channel

    @property
    def _joined(self) -> list[int]:
        return sorted(rank for machine in self._machines for rank in machine.ranks)

    def _gather(self, gate: Gate, address: str) -> None:
        start = time.monotonic()
        report_at = start + _REPORT_S
        while missing := sorted(set(range(self._job.world)) - set(self._joined)):
            gate.step(_TICK_S)
            self._check_members()
            self._check_others()
            now = time.monotonic()
            where = f"{address} port {self._job.port}"
            if address.startswith("127.") or address == "::1":
                where += f" (MASTER_ADDR={self._job.master_addr}: no other machine reaches that)"
            if now > self._deadline:
                raise failure(
                    f"[init_process_group] {len(self._joined)} of {self._job.world} ranks came "
                    f"within {self._settings.timeout_s:g} s to {where}; joined: "
                    f"{rank_list(self._joined)}; missing: {rank_list(missing)}",
                    joined=self._joined,
                    missing=missing,
                )
            if now > report_at:
                report_at = float("inf")
                print(
                    f"paceline: rank 0 waits for {rank_list(missing)} of {self._job.world} at "
                    f"{where} (gives up after {self._settings.timeout_s:g} s)",
                    file=sys.stderr,
                    flush=True,
                )

    def _take(self, channel: Channel) -> None:
        """Hear which machine has proved itself, and whether it belongs here."""
        channel.sock.setblocking(True)
        channel.sock.settimeout(_FRAME_S)
        try:
            frame = channel.receive()
        except (OSError, FrameError):
            frame = None
        if frame is None or frame["kind"] != "machine":
            channel.sock.close()
            return
        ours = hello(self._job, self._settings, None)
        if frame["group"] != ours["group"]:  # another group of this job, or another job
            refusal = "" if frame["run"] == ours["run"] else self._other_job(frame)
            self._turn_away(channel, refusal)
            return
        first, count = frame["first"], frame["count"]
        machine = Machine(first, count, frame["address"], frame["port"], channel)
        taken = sorted(set(self._joined) & set(machine.ranks))
        if taken:
            self._turn_away(
                channel,
                f"[init_process_group] {rank_list(taken)} of job {ours['run']!r} at "
                f"{self._job.where} {'is' if len(taken) == 1 else 'are'} taken by another machine",
            )
            return
        self._machines.append(machine)
        for name in ("world", "protocol", "version", "config"):
            if frame[name] != ours[name]:
                what = "WORLD_SIZE" if name == "world" else name
                raise failure(
                    f"[init_process_group] ranks disagree on {what}: got {frame[name]} on rank "
                    f"{first}, {ours[name]} on rank 0; joined: {rank_list(self._joined)}",
                    joined=self._joined,
                )
        if first < 1 or first + count > self._job.world:
            raise failure(
                f"[init_process_group] a machine has ranks {first} to {first + count - 1}: "
                f"expected ranks of 1 to {self._job.world - 1}"
            )

    def _other_job(self, frame: dict[str, Any]) -> str:
        return (
            f"[init_process_group] {self._job.where} is used by another job: it is "
            f"{hello(self._job, self._settings, None)['run']!r} (pid {os.getpid()} of rank 0), "
            f"this one {frame['run']!r}; choose another MASTER_PORT or PACELINE_PORT"
        )

    def _turn_away(self, channel: Channel, refusal: str) -> None:
        with contextlib.suppress(OSError):
            if refusal:
                channel.send("refused", text=refusal)
            else:
                channel.send("later")
        channel.sock.close()

    def _check_others(self) -> None:
        for machine in self._machines:
            channel = machine.channel
            if channel is not None and select.select([channel.sock], [], [], 0)[0]:
                take_frame(channel, machine.ranks, "ready")
                machine.is_ready = True


# -- frames -------------------------------------------------------------------------------------


def hello(job: Job, settings: Settings, listener: socket.socket | None) -> dict[str, Any]:
    """What a machine says of itself."""
    address, port = ("", 0) if listener is None else listener.getsockname()[:2]
    return {
        "protocol": PROTOCOL,
        "version": settings.version,
        "config": settings.config,
        "world": job.world,
        "first": job.rank - job.local_rank,
        "count": job.local_world,
        "address": address,
        "port": port,
        "run": f"{job.run_id} {job.restart}".strip(),
        "group": f"{job.run_id} {job.restart} {settings.label}",
    }


def table_of(machines: list[Machine], job_id: bytes) -> dict[str, Any]:
    """Fields of the frame that tells a machine about all."""
    return {
        "job": job_id.hex(),
        "firsts": [machine.first for machine in machines],
        "ports": [machine.port for machine in machines],
        "addresses": [machine.address for machine in machines],
    }


def failed_fields(text: str, error: RendezvousError | None) -> dict[str, Any]:
    """Fields of the frame that ends a rendezvous."""
    return {
        "text": text,
        "dead": list(getattr(error, "dead_ranks", ())),
        "joined": list(getattr(error, "joined_ranks", ())),
        "missing": list(getattr(error, "missing_ranks", ())),
    }


def take_frame(channel: Channel, ranks: list[int], *kinds: str) -> dict[str, Any]:
    """Receive one frame of `kinds`; raises what the other end says of its failure, or its end."""
    channel.sock.settimeout(_FRAME_S)
    try:
        frame = channel.receive()
    except (OSError, FrameError) as error:
        raise failure(f"[init_process_group] {rank_list(ranks)} sent {error}") from None
    if frame is None:
        raise failure(
            f"[init_process_group] the machine of {rank_list(ranks)} left during the rendezvous",
            dead=ranks[:1],
        )
    if frame["kind"] == "refused":
        raise failure(frame["text"])
    if frame["kind"] == "failed":
        raise failure(
            frame["text"], dead=frame["dead"], joined=frame["joined"], missing=frame["missing"]
        )
    if frame["kind"] not in kinds:
        raise failure(f"[init_process_group] {rank_list(ranks)} sent {frame['kind']}")
    return frame


def meet_machines(job: Job, settings: Settings, local: Links) -> Links:
    """Meet the other machines of `job`; `local` are the links to the ranks of this one.

    Raises
    ------
    RendezvousError
        A machine did not come, disagrees, or has failed; the text says which.
    ConfigError
        The shared secret cannot be used.
    """
    kind = Member if job.local_rank else Host if job.rank == 0 else Leader
    party = kind(job, settings, local)
    try:
        return party.run()
    except RendezvousError as error:
        if isinstance(party, Leader):
            party.give_up(str(error), error)
        else:
            party.give_up(str(error))
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        party.give_up(f"[init_process_group] rank {job.rank} gave up: {text}")
        raise
    finally:
        party.close()
