# SPDX-License-Identifier: Apache-2.0
"""Connections between machines: who may speak, and frames that nobody else can write.

Both ends prove by HMAC-SHA256 that they hold the same secret before a byte of anything else is
looked at. Messages of the handshake have fixed sizes, below 256 bytes:

1. client: magic, purpose, its number, 32 random bytes
2. server: 32 random bytes, the job's id, a MAC over all of it
3. client: a MAC over the same

The MACs differ by role and cover purpose, number and job, so none can be reflected or replayed.
A key for this connection follows from the random bytes; every later frame carries a MAC over a
counter, its direction and its bytes. Nothing is encrypted, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import selectors
import socket
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paceline.distributed import frames
from paceline.distributed.frames import FrameError
from paceline.errors import ConfigError

CONTROL, DATA = 1, 2  # purposes of a connection
_MAGIC = b"paceln\x00\x01"  # and the version of the handshake
_HELLO = struct.Struct("!8sII32s")
_ANSWER = struct.Struct("!32s16s32s")
_MAC = 32
_HANDSHAKE_S = 5.0
_MAX_PENDING = 64
_MIN_SECRET = 32


def read_secret() -> bytes:
    """Read the secret that the machines of a job share.

    Raises
    ------
    ConfigError
        PACELINE_SECRET_FILE is not set, or its file is too short or readable by others.
    """
    path = os.environ.get("PACELINE_SECRET_FILE", "")
    hint = (
        "make it once with `(umask 077; head -c 32 /dev/urandom | base64 > paceline.secret)` and "
        "copy it to every machine"
    )
    if not path:
        raise ConfigError(
            "[init_process_group] several machines need a shared secret: PACELINE_SECRET_FILE is "
            f"not set; {hint}"
        )
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(
            f"[init_process_group] PACELINE_SECRET_FILE cannot be read: {error}; {hint}"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"[init_process_group] PACELINE_SECRET_FILE may be read by others: got mode "
            f"{stat.S_IMODE(mode):04o} of {path}, expected 0600"
        )
    if len(secret) < _MIN_SECRET:
        raise ConfigError(
            f"[init_process_group] PACELINE_SECRET_FILE is too short: got {len(secret)} bytes in "
            f"{path}, expected {_MIN_SECRET} or more; {hint}"
        )
    return hashlib.sha256(b"paceline secret" + secret).digest()


def _mac(key: bytes, role: bytes, *parts: bytes) -> bytes:
    text = b"".join(struct.pack("!I", len(part)) + part for part in (role, *parts))
    return hmac.digest(key, text, "sha256")


class Refused(Exception):
    """The other end does not hold our secret, or is no paceline at all."""


@dataclass
class Channel:
    """A connection whose ends have proved themselves; sends and receives frames.

    Attributes
    ----------
    sock : socket
        Blocking, with a timeout that the caller sets.
    number : int
        What the client called itself: a rank.
    job : bytes
        The server's id of the job.
    """

    sock: socket.socket
    key: bytes
    is_server: bool
    number: int
    job: bytes
    _counts: list[int] = field(default_factory=lambda: [0, 0])

    def _tag(self, by_server: bool, data: bytes) -> bytes:
        count = self._counts[by_server]
        self._counts[by_server] += 1
        return _mac(self.key, b"server" if by_server else b"client", struct.pack("!Q", count), data)

    def send(self, kind: str, **fields: Any) -> None:
        """Send one frame."""
        data = frames.encode(kind, **fields)
        tag = self._tag(self.is_server, data)
        self.sock.sendall(struct.pack("!I", len(data)) + data + tag)

    def receive(self) -> dict[str, Any] | None:
        """Receive one frame; None where the other end closed.

        Raises
        ------
        FrameError
            It is no frame, or not by the other end.
        """
        head = _read(self.sock, 4)
        if head is None:
            return None
        (length,) = struct.unpack("!I", head)
        if length > frames.MAX_FRAME:
            raise FrameError(f"a frame of {length} bytes, expected at most {frames.MAX_FRAME}")
        body = _read(self.sock, length + _MAC)
        if body is None:
            return None
        data, tag = body[:length], body[length:]
        if not hmac.compare_digest(tag, self._tag(not self.is_server, data)):
            raise FrameError("a frame with a wrong MAC")
        return frames.decode(data)


def _read(sock: socket.socket, n: int) -> bytes | None:
    data = b""
    while len(data) < n:
        try:
            part = sock.recv(n - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data


def connect(
    sock: socket.socket, secret: bytes, purpose: int, number: int, job: bytes | None = None
) -> Channel:
    """Prove ourselves to a server, and let it prove itself; `sock` is connected.

    Parameters
    ----------
    job : bytes, optional
        The only job to accept.

    Raises
    ------
    Refused
        It does not hold our secret, or is of another job.
    """
    hello = _HELLO.pack(_MAGIC, purpose, number, secrets.token_bytes(32))
    sock.settimeout(_HANDSHAKE_S)
    try:
        sock.sendall(hello)
        answer = _read(sock, _ANSWER.size)
    except TimeoutError:
        raise Refused("it said nothing") from None
    except OSError as error:
        raise Refused(str(error)) from None
    if answer is None:
        raise Refused("it closed the connection: its PACELINE_SECRET_FILE may be another one")
    nonce, its_job, tag = _ANSWER.unpack(answer)
    if not hmac.compare_digest(tag, _mac(secret, b"server", hello, nonce, its_job)):
        raise Refused("it does not have our PACELINE_SECRET_FILE")
    if job is not None and its_job != job:
        raise Refused("it belongs to another job")
    sock.sendall(_mac(secret, b"client", hello, nonce, its_job))
    key = _mac(secret, b"key", hello, nonce, its_job)
    return Channel(sock, key, False, number, its_job)


def dial(address: tuple[str, int], secret: bytes, number: int, timeout_s: float) -> Channel:
    """Connect to rank 0's machine and prove ourselves; the socket is the channel's then.

    Raises
    ------
    OSError
        Nobody listens there.
    Refused
        As by `connect`.
    """
    sock = socket.create_connection(address, timeout_s)
    try:
        return connect(sock, secret, CONTROL, number)
    except BaseException:
        sock.close()
        raise


@dataclass(eq=False)
class _Caller:
    """Somebody who has connected and not yet proved who he is."""

    sock: socket.socket
    since: float
    data: bytes = b""
    hello: bytes = b""
    nonce: bytes = b""


class Gate:
    """A listener that lets in who holds the secret and turns all others away.

    Parameters
    ----------
    listener : socket
        Bound and listening; closed by `close`.
    accept : callable
        Called with the `Channel` of each that has proved himself.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        job: bytes,
        purpose: int,
        accept: Callable[[Channel], None],
    ) -> None:
        self._secret = secret
        self._job = job
        self._purpose = purpose
        self._accept = accept
        self._callers: set[_Caller] = set()
        self._listener = listener
        listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)

    def step(self, wait_s: float) -> None:
        """Serve who is there, waiting at most so long for somebody."""
        now = time.monotonic()
        for caller in [c for c in self._callers if now - c.since > _HANDSHAKE_S]:
            self._drop(caller)
        for key, _ in self._selector.select(max(wait_s, 0.0)):
            if key.data is None:
                self._take()
            elif key.data in self._callers:
                self._hear(key.data)

    def close(self) -> None:
        """Close the listener and every connection that has not proved itself."""
        for caller in list(self._callers):
            self._drop(caller)
        self._selector.close()
        self._listener.close()

    def _take(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._callers) >= _MAX_PENDING:
            sock.close()
            return
        sock.setblocking(False)
        caller = _Caller(sock, time.monotonic())
        self._callers.add(caller)
        self._selector.register(sock, selectors.EVENT_READ, caller)

    def _release(self, caller: _Caller) -> None:
        self._selector.unregister(caller.sock)
        self._callers.discard(caller)

    def _drop(self, caller: _Caller) -> None:
        self._release(caller)
        caller.sock.close()

    def _hear(self, caller: _Caller) -> None:
        wanted = _MAC if caller.hello else _HELLO.size
        try:
            part = caller.sock.recv(wanted - len(caller.data))
        except BlockingIOError:
            return
        except OSError:
            part = b""
        caller.data += part
        if not part:
            self._drop(caller)
        elif len(caller.data) == wanted:
            data, caller.data = caller.data, b""
            if caller.hello:
                self._let_in(caller, data)
            elif not self._answer(caller, data):
                self._drop(caller)

    def _answer(self, caller: _Caller, data: bytes) -> bool:
        """Prove ourselves to one who says hello; whether that could be done."""
        magic, purpose, _, _ = _HELLO.unpack(data)
        if magic != _MAGIC or purpose != self._purpose:
            return False
        caller.hello, caller.nonce = data, secrets.token_bytes(32)
        tag = _mac(self._secret, b"server", data, caller.nonce, self._job)
        try:
            caller.sock.send(_ANSWER.pack(caller.nonce, self._job, tag))
        except OSError:
            return False
        return True

    def _let_in(self, caller: _Caller, data: bytes) -> None:
        """Hand over one whose proof holds."""
        parts = (caller.hello, caller.nonce, self._job)
        if not hmac.compare_digest(data, _mac(self._secret, b"client", *parts)):
            self._drop(caller)
            return
        self._release(caller)
        number = _HELLO.unpack(caller.hello)[2]
        key = _mac(self._secret, b"key", *parts)
        self._accept(Channel(caller.sock, key, True, number, self._job))
