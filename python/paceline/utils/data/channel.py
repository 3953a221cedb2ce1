# SPDX-License-Identifier: Apache-2.0
"""Messages between a loader and one of its worker processes, over a pair of Unix sockets.

A message is bytes, with descriptors beside them. The worker's end blocks; the loader's end never
does: what the socket does not take at once waits in an outbox, so that two ends which both write
cannot wait for one another. Knows nothing of batches.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import Sequence

_HEAD = struct.Struct("<QI")  # bytes of the message, descriptors with it
_MAX_FDS = 4
_CHUNK = 1 << 16

# The loaders' ends in this process. A forked child closes them at once: held open there, they
# would keep workers from seeing that their loader is gone.
_loader_ends: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    for end in list(_loader_ends):
        end.close()
    _loader_ends.clear()


os.register_at_fork(after_in_child=_close_in_child)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Connect two ends: the loader's and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    _loader_ends.add(ours)
    return ours, theirs


class Channel:
    """One end.

    Parameters
    ----------
    sock : socket
        Non-blocking at the loader, blocking at the worker. The channel owns it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False  # by the other end
        self._outbox: deque[memoryview] = deque()
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        """Give the descriptor, for polling."""
        return self.sock.fileno()

    # -- out --------------------------------------------------------------------------------------

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write a message, waiting for room: the worker's way."""
        view = memoryview(_HEAD.pack(len(data), len(fds)) + data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([view], ancillary)
        self.sock.sendall(view[sent:])

    def post(self, data: bytes) -> None:
        """Write a message without waiting: the loader's way."""
        self._outbox.append(memoryview(_HEAD.pack(len(data), 0) + data))
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes of the outbox."""
        while self._outbox:
            try:
                sent = self.sock.send(self._outbox[0])
            except BlockingIOError:
                return
            except OSError:  # the worker is gone; its end of the socket or its pidfd tells how
                self._outbox.clear()
                return
            if sent < len(self._outbox[0]):
                self._outbox[0] = self._outbox[0][sent:]
            else:
                self._outbox.popleft()

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits in the outbox."""
        return bool(self._outbox)

    # -- in ---------------------------------------------------------------------------------------

    def read(self, wait: bool) -> bool:
        """Take in what has arrived, once; False if nothing has, or the other end has closed."""
        space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                _CHUNK, space, flags | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError:
            data, ancillary = b"", []
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                self._fds.extend(fds)
        self.closed = not data
        self._bytes += data
        return bool(data)

    def message(self) -> tuple[bytes, list[int]] | None:
        """Take the next whole message and the descriptors with it, which are the caller's."""
        if len(self._bytes) < _HEAD.size:
            return None
        size, n_fds = _HEAD.unpack_from(self._bytes)
        end = _HEAD.size + size
        if len(self._bytes) < end:
            return None
        data = bytes(memoryview(self._bytes)[_HEAD.size : end])
        del self._bytes[:end]
        return data, [self._fds.popleft() for _ in range(n_fds)]

    def close(self) -> None:
        """Close the socket and the descriptors that nobody took."""
        self.sock.close()
        while self._fds:
            os.close(self._fds.popleft())
