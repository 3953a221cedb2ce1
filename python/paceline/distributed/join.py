# SPDX-License-Identifier: Apache-2.0
"""The side of the rendezvous that joins: every rank but 0.

Blocks on the caller's thread, interruptible; see ``rendezvous.py`` for the whole.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Any

from paceline.distributed import frames, linux
from paceline.distributed.environment import Job
from paceline.distributed.frames import Descriptors, FrameError
from paceline.distributed.links import (
    PROTOCOL,
    Links,
    Settings,
    failure,
    socket_name,
    try_send,
)
from paceline.errors import RendezvousError

_CONNECT_PAUSE_S = 0.002  # doubled after each attempt, up to:
_CONNECT_PAUSE_MAX_S = 0.05
_PEER_GRACE_S = 2.0  # a joiner waits this much longer, so that rank 0's better message wins
_DEATH_GRACE_S = 0.2  # sockets of a dying process close a moment before its pidfd tells


class Joiner:
    """One rank other than 0, from connecting to holding its links."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings
        self._deadline = time.monotonic() + settings.timeout_s
        self._own = Descriptors()  # handed over to the links at the end
        self._sock: socket.socket | None = None
        self._host_pidfd = -1
        self._host_pid = -1
        self._is_joined = False

    def __enter__(self) -> Joiner:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, tb: object) -> None:
        if kind is not None and self._sock is not None and kind is not RendezvousError:
            # Tell the others why: Ctrl-C here, memory gone, and so on.
            text = f"{kind.__name__}: {value}".removesuffix(": ")
            failed = frames.encode("failed", text=text, dead=[], joined=[], missing=[])
            try_send(self._sock, failed)
        self._disconnect()
        self._own.close()

    def run(self) -> Links:
        """Find rank 0, say hello, take what it hands out; raises as ``rendezvous`` does."""
        while True:
            self._connect()
            if self._say_hello():
                break
            self._disconnect()  # rank 0 of an earlier group was closing: try again
            time.sleep(_CONNECT_PAUSE_S)
        return self._collect()

    # -- finding rank 0 ---------------------------------------------------------------------

    def _connect(self) -> None:
        name = socket_name(self._job, self._settings.label)
        pause = _CONNECT_PAUSE_S
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.connect(name)
            except (ConnectionRefusedError, BlockingIOError, FileNotFoundError):
                sock.close()
                if time.monotonic() > self._deadline:
                    raise self._nobody_there() from None
                time.sleep(pause)
                pause = min(pause * 2, _CONNECT_PAUSE_MAX_S)
                continue
            except BaseException:
                sock.close()
                raise
            self._sock = sock
            if self._check_host():
                return
            self._disconnect()

    def _nobody_there(self) -> RendezvousError:
        job = self._job
        return failure(
            f"[init_process_group] rank 0 did not come: rank {job.rank} of {job.world} (pid "
            f"{os.getpid()}) waited {self._settings.timeout_s:g} s at {job.where}; it may have "
            "ended before it got here, or have another MASTER_ADDR, MASTER_PORT or run id",
            joined=[job.rank],
            missing=[0],
        )

    def _check_host(self) -> bool:
        """Whether who listens may be our rank 0; False if it is already gone."""
        assert self._sock is not None
        who = linux.peer_credentials(self._sock)
        if who.uid != os.geteuid():
            raise failure(
                f"[init_process_group] {self._job.where} is used by another user: got pid "
                f"{who.pid} of user {linux.user_name(who.uid)}, expected user "
                f"{linux.user_name(os.geteuid())}; choose another MASTER_PORT"
            )
        if who.pid <= 0:
            raise failure(linux.OTHER_PID_NAMESPACE)
        try:
            self._host_pidfd = linux.pidfd_open(who.pid)
        except ProcessLookupError:
            return False
        self._host_pid = who.pid
        return True

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._host_pidfd >= 0:
            os.close(self._host_pidfd)
            self._host_pidfd = -1

    # -- talking to it ----------------------------------------------------------------------

    def _say_hello(self) -> bool:
        """Whether rank 0 took us in; False if it closed without having seen us."""
        assert self._sock is not None
        hello = frames.encode(
            "hello",
            protocol=PROTOCOL,
            version=self._settings.version,
            config=self._settings.config,
            machine=linux.same_machine_id(),
            rank=self._job.rank,
            world=self._job.world,
            pid=os.getpid(),
        )
        try:
            frames.send(self._sock, hello)
        except (BrokenPipeError, ConnectionResetError):
            return self._host_lives()
        got = self._receive("joined")
        self._is_joined = got is not None
        return self._is_joined

    def _host_lives(self) -> bool:
        if linux.has_exited(self._host_pidfd, _DEATH_GRACE_S):
            raise failure(
                f"[init_process_group] rank 0 (pid {self._host_pid}) died during the rendezvous "
                f"of {self._job.world} ranks at {self._job.where}",
                dead=[0],
                joined=[self._job.rank],
            )
        return False

    def _receive(self, *kinds: str) -> tuple[dict[str, Any], list[int]] | None:
        """Read a frame of one of `kinds`; None if rank 0 closed before it took us in."""
        assert self._sock is not None
        self._wait_readable()
        try:
            frame, fds = frames.receive(self._sock, self._own)
        except FrameError as error:
            raise failure(
                f"[init_process_group] what listens at {self._job.where} (pid {self._host_pid}) "
                f"is not rank 0 of a paceline job: it sent {error}; choose another MASTER_PORT"
            ) from None
        if frame is None:
            self._host_lives()
            if not self._is_joined:
                return None
            raise failure(
                f"[init_process_group] rank 0 (pid {self._host_pid}) left the rendezvous of "
                f"{self._job.world} ranks at {self._job.where}",
                dead=[0],
                joined=[self._job.rank],
            )
        if frame["kind"] in ("refused", "failed"):
            raise failure(
                frame["text"],
                dead=frame.get("dead", ()),
                joined=frame.get("joined", ()),
                missing=frame.get("missing", ()),
            )
        if frame["kind"] not in kinds:
            raise failure(
                f"[init_process_group] rank 0 is out of step: got {frame['kind']}, expected "
                f"{' or '.join(kinds)}"
            )
        return frame, fds

    def _wait_readable(self) -> None:
        assert self._sock is not None
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        left = self._deadline + _PEER_GRACE_S - time.monotonic()
        if not poller.poll(max(left, 0.0) * 1000.0):
            raise failure(
                f"[init_process_group] rank 0 (pid {self._host_pid}) did not answer: rank "
                f"{self._job.rank} of {self._job.world} waited "
                f"{self._settings.timeout_s + _PEER_GRACE_S:g} s at {self._job.where}",
                joined=[self._job.rank],
            )

    def _collect(self) -> Links:
        """Take memory, sockets and pidfds; returns when rank 0 knows that all have theirs."""
        world, rank = self._job.world, self._job.rank
        got = self._receive("welcome")
        assert got is not None
        assert self._sock is not None
        frame, fds = got
        links = Links(str(frame["job"]), -1, [-1] * world, [-1] * world, [])
        pids: list[int] = frame["pids"]
        if len(pids) != world or len(fds) != 1:
            raise failure("[init_process_group] rank 0 sent a welcome for another world")
        links.pids, links.control_fd = pids, fds[0]
        for _ in range(world - 1):
            got = self._receive("link")
            assert got is not None
            frame, fds = got
            peer: int = frame["rank"]
            is_new = 0 <= peer < world and peer != rank and links.peer_fds[peer] < 0
            if not is_new or len(fds) != 2:
                raise failure("[init_process_group] rank 0 sent a link for another world")
            links.peer_fds[peer], links.pidfds[peer] = fds
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            frames.send(self._sock, frames.encode("ready"))
        # If that failed, what rank 0 said before it closed is still to be read.
        self._receive("go")
        links.owner, self._own = self._own, Descriptors()
        return links
