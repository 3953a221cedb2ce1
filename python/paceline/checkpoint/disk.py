# SPDX-License-Identifier: Apache-2.0
"""Every call of the operating system with which a checkpoint is written, read or removed.

They stand in one place so that a test can fail or kill at each of them. Paths are below a folder
that is open already where a name comes from a file: nothing outside can be reached, and a link,
pipe or device is not opened. Knows neither tensors nor what a checkpoint is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import CheckpointError

__all__ = [
    "CHUNK",
    "Lock",
    "READ_CHUNK",
    "OpenFolder",
    "Writer",
    "clean_name",
    "digest",
    "exchange",
    "hasher",
    "link",
    "make_folder",
    "read_at",
    "remove_tree",
    "rename",
    "start_writing",
    "sync_folder",
    "write_error",
]

T = TypeVar("T")
#: Bytes per write, and per read: many enough for a system call to be cheap, few enough to stay in
#: the processor's cache, so that hashing them there costs no second trip to memory.
CHUNK = 8 << 20
READ_CHUNK = 256 << 10
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_AHEAD = 32 << 20  # bytes of a file that are written before the disk is told to begin


def hasher() -> Any:
    """Make a running checksum (XXH3, 128 bits)."""
    import xxhash

    return xxhash.xxh3_128()


def digest(data: Any) -> str:
    """Give the checksum of bytes, in hexadecimal."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def write_error(error: OSError, path: str, needed: int) -> CheckpointError:
    """Say what the system refused, with the bytes needed and the bytes that are left."""
    free = -1
    with contextlib.suppress(OSError):
        room = os.statvfs(os.path.dirname(path) or ".")
        free = room.f_bavail * room.f_frsize
    text = f"[save_state] cannot write {path}: {error.strerror or error}"
    if needed >= 0 and free >= 0:
        text += f": {needed} bytes needed, {free} free"
    made = CheckpointError(text)
    made.errno, made.path, made.needed, made.free = error.errno, path, needed, free
    return made


class Writer:
    """A new file, written through to the disk; offers the ``write`` of a binary file.

    Parameters
    ----------
    path : str
        Must not exist.
    needed : int
        Bytes that are going to be written, for the message when they do not fit.
    """

    def __init__(self, path: str, needed: int = -1) -> None:
        self.path = path
        self.size = 0
        self._needed = needed
        self._begun = 0  # bytes that the disk has been told of
        self._fd = -1
        self._fd = self._do(
            lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        )

    def _do(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise write_error(error, self.path, self._needed) from error

    def write(self, data: Any) -> int:
        """Write all of ``data``, however little the system takes at a time."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            part = view[at : at + CHUNK]
            taken = self._do(lambda part=part: os.write(self._fd, part))  # type: ignore[misc]
            at += taken
            self.size += taken
            if self.size - self._begun >= _AHEAD:
                start_writing(self._fd, self._begun, self.size - self._begun)
                self._begun = self.size
        return len(view)

    def close(self) -> None:
        """Wait until the disk has it."""
        self._do(lambda: os.fsync(self._fd))
        fd, self._fd = self._fd, -1
        self._do(lambda: os.close(fd))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        if kind is None:
            self.close()
        elif self._fd >= 0:
            os.close(self._fd)


def start_writing(fd: int, at: int, size: int) -> None:
    """Let the disk begin with a stretch of a file, so that it works while the rest is copied.

    A hint: nothing is waited for, and what fails is told by the flush at the end.
    """
    with contextlib.suppress(AttributeError):  # a C library that has none
        call = ctypes.CDLL(None).sync_file_range
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(fd, at, size, _SYNC_FILE_RANGE_WRITE)


def read_at(fd: int, memory: memoryview, at: int) -> int:
    """Fill memory from a place in a file; gives the bytes read, fewer only where the file ends."""
    done = 0
    while done < len(memory):
        got = os.preadv(fd, [memory[done:]], at + done)
        if not got:
            break
        done += got
    return done


def sync_folder(path: str) -> None:
    """Wait until the disk knows the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Make a new folder."""
    os.mkdir(path, 0o777)


def rename(old: str, new: str) -> None:
    """Rename; a name that exists is replaced as the system does it."""
    os.rename(old, new)


def link(old: str, new: str) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
        return
    if not os.path.isfile(old):
        return  # a pipe or socket moves later, when the folder has been replaced
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copy2(old, new)


def exchange(one: str, other: str) -> bool:
    """Let two names change places in one step; False where the file system cannot.

    Raises
    ------
    OSError
        For any other refusal.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library from before 2018
        return False
    paths = (os.fsencode(one), os.fsencode(other))
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), one)


def remove_tree(path: str) -> None:
    """Remove a folder and all in it; what is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


class Lock:
    """Keeps a second process from saving to the same place at the same time.

    A file beside the folder, locked by the system and so free when its holder dies. It holds the
    holder's process id.

    Raises
    ------
    CheckpointError
        When another process holds it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        while self._fd < 0:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                self._take()
                if not self._is_named():  # its holder removed it between our open and our lock
                    self._let_go()
                    continue
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, str(os.getpid()).encode(), 0)
            except BaseException:
                self._let_go()
                raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            folder, name = os.path.split(self._path)
            saved = os.path.join(folder, name.removeprefix(".").removesuffix(".lock"))
            raise CheckpointError(
                f"[save_state] {saved} is being saved by another process (pid {holder}): save to "
                "another folder, or wait for it"
            ) from error

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _is_named(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others save there."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            with contextlib.suppress(OSError):
                self._let_go()


def clean_name(name: object) -> str:
    """Give a name from a file if it stays below its folder.

    Raises
    ------
    CheckpointError
        If it is absolute, empty, or goes up.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(parts) or "\0" in str(name) or any(part in (".", "..") for part in parts):
        raise CheckpointError(
            f"[load_state] a file's name leads out of the checkpoint: got {name!r}, expected a "
            "path below its folder"
        )
    return "/".join(parts)


class OpenFolder:
    """A folder held open, so that what is read of it belongs together even if it is replaced."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_replaced(self) -> bool:
        """Tell whether its name now stands for another folder."""
        try:
            return not os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:
            return True

    def names(self) -> list[str]:
        """List what is in it."""
        return os.listdir(self._fd)

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        try:
            return stat.S_ISREG(self._stat(name).st_mode)
        except OSError:
            return False

    def size(self, name: str) -> int:
        """Give the bytes of a file, -1 if there is none."""
        try:
            return self._stat(name).st_size
        except OSError:
            return -1

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(clean_name(name), dir_fd=self._fd, follow_symlinks=False)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file for reading.

        Raises
        ------
        CheckpointError
            If it is missing, or anything but a regular file that lies in this folder.
        """
        fd = self._fd
        held: list[int] = []
        parts = clean_name(name).split("/")
        try:
            for part in parts[:-1]:
                fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=fd)
                held.append(fd)
            # O_NONBLOCK: a pipe would wait for its writer.
            fd = os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | _SAFE, dir_fd=fd)
            held.append(fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CheckpointError(_refused(self.path, name))
            with os.fdopen(fd, "rb", closefd=False) as file:
                yield file
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise CheckpointError(_refused(self.path, name)) from error
            made = CheckpointError(
                f"[load_state] cannot read {os.path.join(self.path, name)}: {error.strerror}"
            )
            made.errno, made.path = error.errno, os.path.join(self.path, name)
            raise made from error
        finally:
            for fd in reversed(held):
                os.close(fd)

    def checksum(self, name: str) -> str:
        """Give the checksum of a whole file."""
        running = hasher()
        with self.open(name) as file:
            while part := file.read(CHUNK):
                running.update(part)
        return str(running.hexdigest())

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC


def _refused(folder: str, name: str) -> str:
    return (
        f"[load_state] {os.path.join(folder, name)} is no regular file: got a link, folder, pipe "
        "or device, expected the file itself"
    )
