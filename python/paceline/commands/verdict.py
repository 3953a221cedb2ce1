# SPDX-License-Identifier: Apache-2.0
"""Whose failure ended a job, and how to say it.

One rank fails and the others follow, because a peer is gone. The first one is to be shown, and
its exit code is the job's. Knows nothing of running processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ending", "exit_code", "exit_text", "read_report", "root_cause", "summary"]

# What a rank raises because of another one: never the cause where anybody else failed.
_FOLLOWERS = frozenset(
    ("CollectiveTimeoutError", "PeerLostError", "RemoteError", "RendezvousError")
)
_LAST_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)")
_TOGETHER_S = 1.0
_REPORT_BYTES_MAX = 1 << 16


@dataclass
class Ending:
    """How one rank ended.

    Attributes
    ----------
    rank, pid : int
        Who.
    code : int
        As ``subprocess`` gives it: negative is a signal.
    at : float
        When it failed, by the monotonic clock: its own report, else when it ended.
    told : bool
        It was told to end before it failed: not on its own account.
    stopped : bool
        It was sent SIGTERM or SIGKILL, perhaps after it had failed.
    kind, message : str
        Class name and text of the exception, where it reported one or printed a traceback.
    text : bytes
        The traceback it printed.
    """

    rank: int
    pid: int
    code: int
    at: float
    told: bool = False
    stopped: bool = False
    kind: str = ""
    message: str = ""
    text: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether it failed on its own account."""
        return self.code != 0 and not self.told

    @property
    def what(self) -> tuple[str, str, int]:
        """What happened, for comparison with others."""
        return self.kind, self.message, self.code

    @property
    def follows(self) -> bool:
        """Whether it failed because another rank did."""
        return self.kind in _FOLLOWERS


def read_report(fd: int) -> tuple[str, str, float | None] | None:
    """Read what a rank wrote to PACELINE_ERROR_FILE.

    It is one JSON object: ``type`` (class name), ``message``, ``time_ns`` (monotonic clock).

    Returns
    -------
    tuple of str, str and float, or None
        Class name, text, and time in seconds if given; None if there is no report.
    """
    try:
        raw = os.pread(fd, _REPORT_BYTES_MAX, 0)
        report = json.loads(raw) if raw else None
    except (OSError, ValueError):
        return None  # not written, or not completely: the traceback tells as much
    if not isinstance(report, dict):
        return None
    time_ns = report.get("time_ns")
    return (
        str(report.get("type", "")).rpartition(".")[2],
        str(report.get("message", "")),
        time_ns / 1e9 if isinstance(time_ns, (int, float)) else None,
    )


def name_from_traceback(text: bytes) -> tuple[str, str]:
    """Find class name and message of the exception in a printed traceback."""
    if b"Traceback (most recent call last):" not in text and b'  File "' not in text:
        return "", ""
    for line in reversed(text.decode(errors="replace").splitlines()):
        found = _LAST_LINE.match(line)
        if found:
            return found[1].rpartition(".")[2], line[found.end() :].strip()
    return "", ""


def root_cause(endings: Sequence[Ending]) -> Ending | None:
    """Pick the rank whose failure came first and did not follow from another one."""
    failed = [ending for ending in endings if ending.failed]
    if not failed:
        return None
    first = min(failed, key=lambda ending: (ending.follows, ending.at, ending.rank))
    # A mistake that all ranks make at about the same time is told by the lowest.
    alike = [e for e in failed if e.what == first.what and e.at - first.at < _TOGETHER_S]
    return min(alike, key=lambda ending: ending.rank)


def exit_code(ending: Ending) -> int:
    """Give the exit code that a shell would show."""
    if ending.stopped and ending.code < 0:
        return 1  # it raised, then had to be stopped
    return ending.code if ending.code >= 0 else 128 - ending.code


def exit_text(ending: Ending) -> str:
    """Say how a rank ended, as the end of a sentence that begins with the rank."""
    if ending.stopped and ending.code < 0:
        return f"raised {ending.kind} and did not end by itself"
    if ending.code == 1 and ending.kind:
        return f"raised {ending.kind}"
    if ending.code >= 0:
        return f"ended with exit code {ending.code}"
    try:
        name = signal.Signals(-ending.code).name
    except ValueError:
        name = f"signal {-ending.code}"
    if name == "SIGKILL":
        return "was killed by SIGKILL (which the kernel also sends when memory runs out)"
    return f"was killed by {name}"


def summary(root: Ending, endings: Sequence[Ending]) -> list[str]:
    """Say in a line or two what ended the job; other failures of their own get a line each."""
    lines = [f"rank {root.rank} (pid {root.pid}) {exit_text(root)}"]
    stopped = [ending.rank for ending in endings if ending.told]
    if len(stopped) == 1:
        lines[0] += f"; rank {stopped[0]} was stopped"
    elif stopped:
        lines[0] += f"; {len(stopped)} other ranks were stopped"
    for ending in endings:
        if not ending.failed or ending.follows or ending.what == root.what:
            continue
        what = f"{ending.kind}: {ending.message}".rstrip(": ") or exit_text(ending)
        lines.append(f"rank {ending.rank} failed too: {what}")
    return lines
