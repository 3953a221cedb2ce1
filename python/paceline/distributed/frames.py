# SPDX-License-Identifier: Apache-2.0
"""The frames of the rendezvous: one JSON object per packet, of a closed set of kinds.

What arrives here was written by another process, so it is checked field by field before anyone
looks at it; nothing is ever unpickled. A socket is SOCK_SEQPACKET, so a frame is a packet.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from typing import Any

MAX_FRAME = 32 * 1024  # 256 pids and a list of ranks fit many times over
_MAX_TEXT = 4000
_MAX_FDS = 4

_TEXT, _INT, _TEXTS, _INTS = "text", "int", "texts", "ints"
_KINDS: dict[str, dict[str, str]] = {
    # joiner -> rank 0
    "hello": {
        "protocol": _INT,
        "version": _TEXT,
        "config": _TEXT,
        "machine": _TEXT,
        "rank": _INT,
        "world": _INT,
        "pid": _INT,
    },
    "ready": {},
    # rank 0 -> joiner
    "joined": {},
    "welcome": {"job": _TEXT, "pids": _INTS},
    "link": {"rank": _INT},
    "go": {},
    "refused": {"text": _TEXT},
    # between machines
    "machine": {
        "protocol": _INT,
        "version": _TEXT,
        "config": _TEXT,
        "world": _INT,
        "first": _INT,
        "count": _INT,
        "address": _TEXT,
        "port": _INT,
        "run": _TEXT,
        "group": _TEXT,
    },
    "machines": {"job": _TEXT, "firsts": _INTS, "ports": _INTS, "addresses": _TEXTS},
    "later": {},
    # both ways: the rendezvous is over for everybody
    "failed": {"text": _TEXT, "dead": _INTS, "joined": _INTS, "missing": _INTS},
}


class FrameError(Exception):
    """The other end sent something that is not one of our frames."""


def encode(kind: str, **fields: Any) -> bytes:
    """One frame as bytes; texts are cut so that a frame always fits."""
    for name, value in fields.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            fields[name] = value[:_MAX_TEXT] + " ..."
    assert set(fields) == set(_KINDS[kind]), kind
    return json.dumps({"kind": kind, **fields}).encode()


def _is_int(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _fits(kind: str, value: object) -> bool:
    if kind == _TEXT:
        return isinstance(value, str)
    if kind == _INT:
        return _is_int(value)
    if not isinstance(value, list) or len(value) > 4096:
        return False
    return all(isinstance(v, str) if kind == _TEXTS else _is_int(v) for v in value)


def decode(data: bytes) -> dict[str, Any]:
    """Parse and check one frame.

    Raises
    ------
    FrameError
        It is not JSON, not a known kind, or a field is missing, extra or of another type.
    """
    if len(data) > MAX_FRAME:
        raise FrameError(f"a frame of {len(data)} bytes, expected at most {MAX_FRAME}")
    try:
        frame = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not a frame of paceline ({type(error).__name__})") from None
    kind = frame.get("kind") if isinstance(frame, dict) else None
    fields = _KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise FrameError("a frame of unknown kind")
    if set(frame) != {"kind", *fields}:
        raise FrameError(f"a {kind} frame with other fields than expected")
    for name, wanted in fields.items():
        if not _fits(wanted, frame[name]):
            raise FrameError(f"a {kind} frame whose {name} is not of type {wanted}")
    checked: dict[str, Any] = frame
    return checked


class Descriptors:
    """Owner of file descriptors until somebody takes them; closes what is left."""

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def add(self, fd: int) -> int:
        """Own `fd` from now on."""
        self._fds.add(fd)
        return fd

    def remove(self, fd: int) -> None:
        """Close this one now."""
        self._fds.discard(fd)
        os.close(fd)

    def take(self, other: Descriptors) -> None:
        """Own what `other` owned."""
        self._fds |= other._fds
        other.release_all()

    def release_all(self) -> None:
        """Forget all of them: another owner has taken over."""
        self._fds.clear()

    def close(self) -> None:
        """Close what is still owned."""
        while self._fds:
            os.close(self._fds.pop())


def send(sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one frame; `sock` blocks up to its own timeout."""
    if fds:
        socket.send_fds(sock, [data], fds)
    else:
        sock.send(data)


def receive(sock: socket.socket, owner: Descriptors) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one frame and the descriptors that came with it, close-on-exec.

    Returns
    -------
    frame : dict or None
        None where the other end closed.
    fds : list of int
        Owned by `owner`.

    Raises
    ------
    FrameError
        The frame is malformed or was cut off.
    OSError
        This process may open no more files.
    """
    # Not socket.recv_fds: until Python 3.12 it drops its flags, and a descriptor that is
    # inheritable keeps a dead rank's socket open in its children.
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME + 1, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # Said once, before what the other end had sent: it closed without reading all of ours.
        data, ancillary, flags, _ = sock.recvmsg(MAX_FRAME + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    for fd in fds:
        owner.add(fd)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, "too many open files: raise the limit (`ulimit -n`)")
    if flags & socket.MSG_TRUNC:
        raise FrameError("a frame that was cut off")
    if not data:
        return None, []
    return decode(data), list(fds)
