# SPDX-License-Identifier: Apache-2.0
"""What a rank is to the one that starts it: its command, its process, how it ended.

Knows no job and no loop: those are ``supervise.py``. Standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .streams import Stream
from .verdict import Ending

__all__ = ["Outcome", "Policy", "Rank", "RankCommand", "anonymous_file", "child_setup"]

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankCommand:
    """What to run as one rank.

    Attributes
    ----------
    argv : sequence of str
        Program and arguments.
    env : mapping
        The whole environment.
    cpus : frozenset of int
        Processors to bind it to; empty means all.
    pass_fds : tuple of int
        Descriptors that it inherits.
    copy_fds : tuple of int
        Where its stdout and stderr are also written, -1 for nowhere; needs sinks.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cpus: frozenset[int] = frozenset()
    pass_fds: tuple[int, ...] = ()
    copy_fds: tuple[int, int] = (-1, -1)


@dataclass(frozen=True)
class Policy:
    """How ranks are started and ended.

    Attributes
    ----------
    grace_s : float
        Time between SIGTERM or SIGHUP and SIGKILL.
    interrupt_grace_s : float
        Time between SIGINT and SIGKILL.
    failure_grace_s : float
        Time that the others have to report, once one rank has failed, before SIGTERM.
    own_process : bool
        This process exists for the job only: handle its signals, and set up each rank between
        fork and exec, which is safe without threads alone.
    stdin : bool
        Whether rank 0 reads this process's standard input.
    first_rank : int
        Rank of the first command: above 0 on other machines than the first.
    timeout_s : float, optional
        After this long the ranks get SIGABRT, at which they show where they are.
    """

    grace_s: float = 10.0
    interrupt_grace_s: float = 1.5
    failure_grace_s: float = 0.4
    own_process: bool = True
    stdin: bool = True
    first_rank: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    endings : tuple of Ending
        One per rank.
    root : Ending or None
        The first failure, unless all went well.
    signal : int
        The signal that ended the job, 0 if none did; SIGABRT where its time was up.
    """

    endings: tuple[Ending, ...]
    root: Ending | None
    signal: int


@dataclass
class Rank:
    """One that runs, or has run; its report is what it wrote of an error that ended it."""

    number: int
    process: subprocess.Popen[bytes]
    report_fd: int
    streams: list[Stream] = field(default_factory=list)
    pidfd: int = -1
    failed_at: float | None = None
    kind: str = ""
    message: str = ""
    told: bool = False
    stopped: bool = False
    ending: Ending | None = None


def anonymous_file() -> int:
    """Open a file without a name: nothing can be left behind, whoever is killed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("paceline-report")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def child_setup(cpus: frozenset[int]) -> Callable[[], None] | None:
    """Make what runs in the child between fork and exec: end with the parent, keep to its cores."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def setup() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return setup
