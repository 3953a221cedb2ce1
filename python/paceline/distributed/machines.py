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
import time

from paceline.distributed.environment import Job
from paceline.distributed.links import Links, Settings
from paceline.distributed.machine_frames import FRAME_S, failed_fields
from paceline.distributed.machine_host import Host
from paceline.distributed.machine_party import Leader, Member
from paceline.distributed.secure import Refused, dial, read_secret
from paceline.errors import RendezvousError

_TELL_S = 1.5
_AGAIN_S = 0.05


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


def tell_rank_0(job: Job, error: RendezvousError) -> None:
    """Tell rank 0 that the ranks of this machine did not come together.

    It may begin a moment later than they failed: until it listens it is asked again, for as long
    as an error may wait.
    """
    deadline = time.monotonic() + _TELL_S
    while not _told(job, error) and time.monotonic() < deadline:
        time.sleep(_AGAIN_S)


def _told(job: Job, error: RendezvousError) -> bool:
    with contextlib.suppress(OSError, Refused):
        channel = dial((job.master_addr, job.port), read_secret(), job.rank, FRAME_S)
        with channel.sock:
            channel.send("failed", **failed_fields(str(error), error))
        return True
    return False
