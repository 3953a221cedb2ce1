# SPDX-License-Identifier: Apache-2.0
"""What machines say to one another while a group forms; see ``machines.py`` for the whole."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from paceline.distributed.environment import Job
from paceline.distributed.frames import FrameError
from paceline.distributed.links import PROTOCOL, Settings, failure, rank_list
from paceline.distributed.secure import Channel
from paceline.errors import RendezvousError

PAUSE_S = 0.05  # between two attempts
FRAME_S = 5.0  # for a frame that the other end is to send at once


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
            time.sleep(PAUSE_S)


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
    channel.sock.settimeout(FRAME_S)
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
