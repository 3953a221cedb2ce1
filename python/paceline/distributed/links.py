# SPDX-License-Identifier: Apache-2.0
"""What both sides of the rendezvous share: its settings, its result, its failures.

Does no talking itself; see ``rendezvous.py`` for the whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.distributed import frames
from paceline.distributed.environment import Job
from paceline.distributed.frames import Descriptors
from paceline.errors import RendezvousError

PROTOCOL = 1


@dataclass
class Settings:
    """What a rendezvous needs to know besides the job.

    Attributes
    ----------
    control_bytes : callable
        Size of a machine's control memory for a world size and the number of ranks on it.
    version, config : str
        Must be the same on all ranks.
    timeout_s : float
        How long to wait for all ranks to come.
    label : str
        Tells apart several groups of one job.
    """

    control_bytes: Callable[[int, int], int]
    version: str = ""
    config: str = ""
    timeout_s: float = 300.0
    label: str = ""


@dataclass
class Links:
    """What a rank holds after the rendezvous: descriptors towards every peer.

    Attributes
    ----------
    job_id : str
        128 random bits, the same on all ranks.
    control_fd : int
        The shared control memory.
    peer_fds, pidfds, pids : list of int
        One entry per rank; this rank's own descriptors are -1, as those of other machines.
    machine_first, addresses : list
        Lowest rank and address of every machine.
    link_fds, inbox_fds : list of int
        Connections to each other machine; on the lowest rank of one, those of all ranks elsewhere.
    """

    job_id: str
    control_fd: int
    peer_fds: list[int]
    pidfds: list[int]
    pids: list[int]
    owner: Descriptors = field(default_factory=Descriptors, repr=False)
    machine_first: list[int] = field(default_factory=lambda: [0])
    addresses: list[str] = field(default_factory=lambda: [""])
    link_fds: list[int] = field(default_factory=lambda: [-1])
    inbox_fds: list[int] = field(default_factory=list)

    def taken_by_group(self) -> None:
        """Keep only the control memory: the data plane takes the others, also when it fails."""
        self.owner.release_all()
        self.owner.add(self.control_fd)

    def close(self) -> None:
        """Close every descriptor that nobody took."""
        self.owner.close()


def socket_name(job: Job, label: str) -> bytes:
    """Abstract name of rank 0's socket: the same for all ranks of a job and for no other."""
    parts = [os.geteuid(), job.master_addr, job.master_port, job.run_id, job.restart, label]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return b"\0paceline-" + digest[:32].encode()


def failure(
    text: str,
    *,
    dead: Sequence[int] = (),
    joined: Sequence[int] = (),
    missing: Sequence[int] = (),
) -> RendezvousError:
    """Make the exception, with its attributes."""
    error = RendezvousError(text)
    error.dead_ranks = tuple(dead)
    error.joined_ranks = tuple(joined)
    error.missing_ranks = tuple(missing)
    return error


def rank_list(ranks: Sequence[int]) -> str:
    """``"rank 2"``, ``"ranks 0, 1"`` or ``"none"``."""
    if not ranks:
        return "none"
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def try_send(sock: socket.socket, data: bytes) -> None:
    """Send what it is no failure not to send: the other end may be gone."""
    try:
        sock.setblocking(False)
        frames.send(sock, data)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EAGAIN, errno.ENOTCONN):
            raise
