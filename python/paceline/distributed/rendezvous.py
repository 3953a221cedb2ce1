# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one machine find one another and get the descriptors of their group.

Rank 0 listens on an abstract Unix socket whose name is a hash of user, address, port, run id and
restart count; nothing appears in any file system. The others connect, and each side checks by
SO_PEERCRED that the other belongs to the same user. When all have said hello, rank 0 makes what
the data plane needs and hands it out: the control memory (memfd), one socket pair for every pair
of ranks, and for every process a pidfd, which the kernel makes readable when it dies.

From its hello on a rank is watched: when it dies or gives up, rank 0 tells all others at once.
Everything runs on the caller's thread, so Ctrl-C works; when it returns the sockets of the
rendezvous are closed. The caller needs no thread, and none is left behind.

Rank 0's side is in ``host.py``, the other one in ``join.py``, what they share in ``links.py``.
"""

from __future__ import annotations

import os
import secrets

from paceline.distributed import linux
from paceline.distributed.environment import Job
from paceline.distributed.host import Host
from paceline.distributed.join import Joiner
from paceline.distributed.links import Links, Settings

__all__ = ["Links", "Settings", "rendezvous"]


def rendezvous(job: Job, settings: Settings) -> Links:
    """Meet the other ranks of `job`; every rank calls this once per group.

    Raises
    ------
    RendezvousError
        A rank died, did not come in time, or disagrees; the text says which.
    OSError
        The kernel is too old.
    """
    if job.world == 1:
        return _alone(settings)
    if job.rank == 0:
        with Host(job, settings) as host:
            return host.run()
    with Joiner(job, settings) as joiner:
        return joiner.run()


def _alone(settings: Settings) -> Links:
    links = Links(secrets.token_hex(16), -1, [-1], [-1], [os.getpid()])
    nbytes = settings.control_bytes(1)
    links.control_fd = links.owner.add(linux.memfd_create("paceline", nbytes))
    return links
