# SPDX-License-Identifier: Apache-2.0
"""Ends every process of a job whose launcher was killed.

Also run by its path as ``python -I -S reaper.py LAUNCH_ID LAUNCHER_PID``, beside each job, so it
imports the standard library only. The kernel ends the ranks when their launcher dies
(PR_SET_PDEATHSIG), but not what the ranks started (data workers, helpers): forked children lose
that setting. Here they are found by the session of their rank, or by PACELINE_LAUNCH_ID in the
environment that all descendants inherit.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Collection

__all__ = ["find", "kill_all"]


def _session(pid: str) -> int:
    """Session of a process, -1 if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # "pid (name) state ppid pgrp session ...": the name may hold anything, even ')'.
            state, _ppid, _pgrp, session = file.read().rpartition(b")")[2].split()[:4]
    except (OSError, ValueError):
        return -1
    return -1 if state in (b"Z", b"X") else int(session)


def _has_tag(pid: str, tag: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return tag in file.read().split(b"\0")
    except OSError:
        return False


def find(sessions: Collection[int], launch_id: str | None = None) -> list[int]:
    """Find the living processes of a job, other than the caller.

    Parameters
    ----------
    sessions : collection of int
        Sessions of the ranks; each rank leads one.
    launch_id : str, optional
        Also find processes in other sessions with this PACELINE_LAUNCH_ID in their environment.

    Returns
    -------
    list of int
        Process ids.
    """
    tag = f"PACELINE_LAUNCH_ID={launch_id}".encode()
    own = str(os.getpid())
    found = []
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit() and name != own]
    except OSError:  # a system without /proc
        return []
    for pid in pids:
        session = _session(pid)
        if session < 0:
            continue
        if session in sessions or (launch_id is not None and _has_tag(pid, tag)):
            found.append(int(pid))
    return found


def kill_all(sessions: Collection[int], launch_id: str | None, timeout_s: float) -> bool:
    """Send SIGKILL to all processes of a job until none is left.

    Returns
    -------
    bool
        Whether none is left; False after ``timeout_s`` (a process in uninterruptible sleep).
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = find(sessions, launch_id)
        if not left:
            return True
        if time.monotonic() > deadline:
            return False
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)


def _wait_for_death(launcher: int) -> set[int]:
    """Collect the sessions that the launcher names on stdin, until it dies."""
    os.set_blocking(0, False)
    watched: list[int] = [0]
    try:
        watched.append(os.pidfd_open(launcher))  # stdin alone may be held open by a fork
    except (AttributeError, OSError):
        pass
    text = b""
    while True:
        alive = os.getppid() == launcher  # looked at first: what it wrote before it died is there
        data = _read_all(0)
        text += data or b""
        if data is None or not alive:
            return {int(line) for line in text.split()}
        select.select(watched, [], [], None if len(watched) > 1 else 0.25)


def _read_all(fd: int) -> bytes | None:
    """Read what has arrived; None at the end of the file."""
    data = b""
    while True:
        try:
            piece = os.read(fd, 4096)
        except BlockingIOError:
            return data
        if not piece:
            return data or None
        data += piece


def main() -> None:
    """Wait until the launcher dies, then end what it left."""
    launch_id, launcher = sys.argv[1], int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    sessions = _wait_for_death(launcher)
    # A rank may be in the middle of a fork: look again until nothing new appears.
    for _ in range(3):
        kill_all(sessions, launch_id, timeout_s=2.0)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
