# SPDX-License-Identifier: Apache-2.0
"""The handshake between machines, and frames that were tampered with (C1 of the promises)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from paceline.distributed import secure
from paceline.distributed.frames import FrameError
from paceline.distributed.secure import CONTROL, DATA, Channel, Gate, Refused, connect

SECRET, JOB = b"s" * 32, b"j" * 16


class Server:
    """A gate that is served by a thread."""

    def __init__(self, secret: bytes = SECRET, purpose: int = CONTROL) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.channels: list[Channel] = []
        self._done = False
        self._gate = Gate(listener, secret, JOB, purpose, self.channels.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._done:
            self._gate.step(0.01)
        self._gate.close()

    def close(self) -> None:
        """End the thread."""
        self._done = True
        self._thread.join()
        for channel in self.channels:
            channel.sock.close()

    def dial(self) -> socket.socket:
        """Connect, and say nothing yet."""
        return socket.create_connection(self.address, 5)

    def accepted(self) -> Channel:
        """The one that was let in, once it is."""
        deadline = time.monotonic() + 5
        while not self.channels and time.monotonic() < deadline:
            time.sleep(0.002)
        (channel,) = self.channels
        channel.sock.setblocking(True)
        channel.sock.settimeout(5)
        return channel


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Channel, Channel]]:
    sock = server.dial()
    client = connect(sock, SECRET, CONTROL, 7)
    yield client, server.accepted()
    sock.close()


def test_both_ends_prove_themselves(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    assert (client.job, server.number) == (JOB, 7)
    assert client.key == server.key
    client.send("refused", text="no")
    client.send("go")
    server.send("later")
    assert server.receive() == {"kind": "refused", "text": "no"}
    assert server.receive() == {"kind": "go"}
    assert client.receive() == {"kind": "later"}
    client.sock.close()
    assert server.receive() is None


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("secret", "purpose", "job"),
    [(b"x" * 32, CONTROL, None), (SECRET, DATA, None), (SECRET, CONTROL, b"k" * 16)],
    ids=["secret", "purpose", "job"],
)
def test_what_differs_is_refused(
    server: Server, secret: bytes, purpose: int, job: bytes | None
) -> None:
    with server.dial() as sock, pytest.raises(Refused):
        connect(sock, secret, purpose, 0, job)
    time.sleep(0.05)
    assert not server.channels


def talk(server: Server, hello: bytes, proof: Callable[[bytes], bytes]) -> bool:
    """Say hello, answer the answer with something; whether the server closed."""
    with server.dial() as sock:
        sock.sendall(hello)
        try:
            answer = sock.recv(secure._ANSWER.size, socket.MSG_WAITALL)
        except ConnectionResetError:
            return True
        if len(answer) < secure._ANSWER.size:
            return True
        sock.sendall(proof(answer))
        return is_closed(sock)


def hello(purpose: int = CONTROL, nonce: bytes = b"n" * 32) -> bytes:
    return secure._HELLO.pack(secure._MAGIC, purpose, 3, nonce)


def test_a_proof_that_is_none(server: Server) -> None:
    assert talk(server, hello(), lambda _: os.urandom(32))
    # The server's own proof sent back, and one made with its role.
    assert talk(server, hello(), lambda answer: answer[-32:])
    nonce = slice(0, 32)
    assert talk(
        server,
        hello(),
        lambda a: secure._mac(SECRET, b"server", hello(), a[nonce], JOB),
    )
    # A proof for another number, purpose or nonce than was said.
    assert talk(
        server, hello(), lambda a: secure._mac(SECRET, b"client", hello(DATA), a[nonce], JOB)
    )
    assert talk(server, b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n" + b" " * 32, lambda _: b"")
    assert not server.channels


def test_a_transcript_that_is_replayed(server: Server) -> None:
    recorded: list[bytes] = []

    def prove(answer: bytes) -> bytes:
        recorded.append(secure._mac(SECRET, b"client", hello(), answer[:32], JOB))
        return recorded[0]

    with server.dial() as sock:
        sock.sendall(hello())
        sock.sendall(prove(sock.recv(secure._ANSWER.size, socket.MSG_WAITALL)))
        server.accepted()
    assert talk(server, hello(), lambda _: recorded[0])
    assert len(server.channels) == 1


def test_who_is_slow_or_silent_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "_HANDSHAKE_S", 0.2)
    with server.dial() as silent, server.dial() as slow:
        started = time.monotonic()
        slow.settimeout(5)
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"p")
            time.sleep(0.02)
        assert is_closed(slow)
        assert is_closed(silent)
        assert time.monotonic() - started < 3


def test_a_crowd_of_silent_ones_keeps_nobody_out_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure, "_HANDSHAKE_S", 0.3)
    crowd = [server.dial() for _ in range(100)]
    deadline = time.monotonic() + 5
    while not server.channels and time.monotonic() < deadline:
        try:
            with server.dial() as sock:
                connect(sock, SECRET, CONTROL, 1)
                break
        except Refused:
            time.sleep(0.05)
    server.accepted()
    for sock in crowd:
        sock.close()


def capture(channel: Channel, kind: str) -> bytes:
    """The bytes of a frame, which are not sent."""
    ours, theirs = socket.socketpair()
    real, channel.sock = channel.sock, ours
    channel.send(kind)
    channel.sock = real
    data = theirs.recv(4096)
    ours.close()
    theirs.close()
    return data


def test_frames_that_were_tampered_with(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    _, second = capture(client, "go"), capture(client, "ready")
    client.sock.sendall(second)  # out of order
    with pytest.raises(FrameError, match="wrong MAC"):
        server.receive()


@pytest.mark.parametrize("at", [4, 8, -1, -20])
def test_a_flipped_bit(pair: tuple[Channel, Channel], at: int) -> None:
    client, server = pair
    data = bytearray(capture(client, "go"))
    data[at] ^= 1
    client.sock.sendall(data)
    with pytest.raises(FrameError, match="wrong MAC"):
        server.receive()


def test_a_frame_twice_one_reflected_and_one_too_long(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    data = capture(client, "go")
    client.sock.sendall(data + data)
    assert server.receive() == {"kind": "go"}
    with pytest.raises(FrameError, match="wrong MAC"):
        server.receive()
    server.sock.sendall(data)  # back to whom it came from
    with pytest.raises(FrameError, match="wrong MAC"):
        client.receive()
    client.sock.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError, match="expected at most"):
        server.receive()


def test_the_secret_is_nowhere_to_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    path = os.path.join(tmp_path, "s")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write("correct horse battery staple, and then some\n")
    monkeypatch.setenv("PACELINE_SECRET_FILE", path)
    secret = secure.read_secret()
    assert len(secret) == 32
    assert b"horse" not in secret
    assert "correct" not in repr(os.environ)
