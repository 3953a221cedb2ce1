# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a machine find one another and get the descriptors of their group.

Rank 0 listens on an abstract Unix socket whose name is a hash of user, address, port, run id and
restart count; nothing appears in any file system. The others connect, and each side checks by
SO_PEERCRED that the other belongs to the same user. When all have said hello, rank 0 makes what
the data plane needs and hands it out: the control memory (memfd), one socket pair for every pair
of ranks, and for every process a pidfd, which the kernel makes readable when it dies.

From its hello on a rank is watched: when it dies or gives up, rank 0 tells all others at once.
Everything runs on the caller's thread, so Ctrl-C works; when it returns the sockets of the
rendezvous are closed. The caller needs no thread, and none is left behind.

Rank 0's side is in ``host.py``, the other one in ``join.py``, what they share in ``links.py``;
several machines then meet as ``machines.py`` says.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from paceline.distributed import linux
from paceline.distributed.environment import Job
from paceline.distributed.host import Host
from paceline.distributed.join import Joiner
from paceline.distributed.links import Links, Settings, failure
from paceline.errors import RendezvousError

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
    if job.local_world == job.world:
        return _meet_here(job, settings)
    from paceline.distributed.machines import (  # one machine needs none of it
        meet_machines,
        tell_rank_0,
    )
    from paceline.distributed.secure import read_secret

    read_secret()  # what is missing is said before anyone waits
    first = job.rank - job.local_rank
    here = replace(
        settings,
        control_bytes=lambda *_: settings.control_bytes(job.world, job.local_world),
        label=f"{settings.label} from {first}",
    )
    try:
        local = _meet_here(replace(job, rank=job.local_rank, world=job.local_world), here)
    except RendezvousError as error:
        shifted = failure(
            f"{error} (numbers among the ranks of this machine, the first of which is {first})",
            dead=[rank + first for rank in error.dead_ranks],
            joined=[rank + first for rank in error.joined_ranks],
            missing=[rank + first for rank in error.missing_ranks],
        )
        if job.local_rank == 0 and first > 0:
            tell_rank_0(job, shifted)
        raise shifted from None
    try:
        return meet_machines(job, settings, local)
    except BaseException:
        local.close()
        raise


def _meet_here(job: Job, settings: Settings) -> Links:
    """Meet the ranks of this machine."""
    if job.world == 1:
        return _alone(settings)
    if job.rank == 0:
        with Host(job, settings) as host:
            return host.run()
    with Joiner(job, settings) as joiner:
        return joiner.run()


def _alone(settings: Settings) -> Links:
    links = Links(secrets.token_hex(16), -1, [-1], [-1], [os.getpid()])
    nbytes = settings.control_bytes(1, 1)
    links.control_fd = links.owner.add(linux.memfd_create("paceline", nbytes))
    return links
