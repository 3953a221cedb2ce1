# SPDX-License-Identifier: Apache-2.0
"""The few Linux calls that the control plane needs, and who is at the other end of a socket.

Python has them only when it was built against recent headers (conda's is not), so each falls back
to the system call. Knows nothing of ranks.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import select
import socket
import struct
from typing import NamedTuple

_SYS_PIDFD_OPEN = 434  # the same on every architecture
_SYS_MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
_MFD_CLOEXEC = 1
_MFD_ALLOW_SEALING = 2
_F_ADD_SEALS = 1033
_F_SEAL_SHRINK = 2
_F_SEAL_GROW = 4
OTHER_PID_NAMESPACE = (
    "[init_process_group] the ranks cannot see one another: they run in different pid namespaces; "
    "start all ranks in one container"
)
_NEEDS = "paceline needs Linux 5.3 or later for several processes"


class Credentials(NamedTuple):
    """Process and user at the other end of a Unix socket, as the kernel recorded them."""

    pid: int
    uid: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Who connected, or who listens, at the other end of `sock`."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return Credentials(pid, uid)


def user_name(uid: int) -> str:
    """Name of a user, or its number where the system has no name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _syscall(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def pidfd_open(pid: int) -> int:
    """Open a descriptor that becomes readable when the process `pid` ends.

    The caller must check that `pid` is still who it takes it for *after* this call, for instance
    by the socket over which it knows the process being still connected.

    Raises
    ------
    ProcessLookupError
        There is no such process.
    OSError
        The kernel is too old or a sandbox forbids it; the text says what is needed.
    """
    try:
        if hasattr(os, "pidfd_open"):
            return os.pidfd_open(pid)
        fd = _syscall(_SYS_PIDFD_OPEN, pid, 0)
        os.set_inheritable(fd, False)
        return fd
    except ProcessLookupError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, f"{_NEEDS}: pidfd_open({pid}) failed with {error.strerror}"
        ) from error


def has_exited(pidfd: int, timeout_s: float = 0.0) -> bool:
    """Whether the process of `pidfd` has ended, waiting for that at most `timeout_s`."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000.0))


def memfd_create(name: str, nbytes: int) -> int:
    """Zeroed memory of a fixed size behind a descriptor, without a name in any file system.

    The size is sealed and the pages are allocated, so that a peer can neither shrink it under us
    nor can a full system turn a write into SIGBUS.
    """
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create(name, _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
        else:
            number = _SYS_MEMFD_CREATE[os.uname().machine]
            fd = _syscall(number, name.encode(), _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    except (OSError, KeyError) as error:
        raise OSError(f"{_NEEDS}: memfd_create failed with {error}") from error
    try:
        os.ftruncate(fd, nbytes)
        if nbytes > 0:
            os.posix_fallocate(fd, 0, nbytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def same_machine_id() -> str:
    """Boot id and network namespace: two processes with the same one share kernel and sockets."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"
