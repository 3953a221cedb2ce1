# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.carrier MS NAMESPACE ...``: packets between tun devices, MS later.

Each namespace has a tun0; the last byte of the address says which of them (1 is the first). Every
packet waits equally long, so the order stays and one queue does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
CLONE_NEWNET = 0x40000000
DESTINATION = 19  # place of the address's last byte in an IPv4 header


def enter(path: str) -> None:
    """Go into the network namespace at a path; what was opened before stays where it was."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"[benchmarks] cannot enter {path}")


def tun_of(name: str) -> int:
    """Open the tun device of a namespace."""
    enter(f"/var/run/netns/{name}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    return fd


def read_all(fds: list[int], waiting: deque[tuple[float, int, bytes]], delay: float) -> None:
    """Queue what has arrived."""
    for fd in fds:
        for _ in range(64):
            try:
                packet = os.read(fd, 1 << 16)
            except BlockingIOError:
                break
            to = packet[DESTINATION] - 1
            if packet[0] >> 4 == 4 and 0 <= to < len(fds):
                waiting.append((time.monotonic() + delay, to, packet))


def main() -> None:
    """Carry packets until killed."""
    delay, fds = float(sys.argv[1]) / 1000, [tun_of(name) for name in sys.argv[2:]]
    print("ready", flush=True)
    waiting: deque[tuple[float, int, bytes]] = deque()
    tuns = fds
    while True:
        timeout = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        select.select(tuns, [], [], timeout)
        read_all(tuns, waiting, delay)
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, to, packet = waiting.popleft()
            try:
                os.write(fds[to], packet)
            except BlockingIOError:
                pass  # a full queue drops, as a switch does


if __name__ == "__main__":
    main()
