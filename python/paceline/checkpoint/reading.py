# SPDX-License-Identifier: Apache-2.0
"""Reading the tensors of a file with their checksums, on as many threads as loops use.

Each thread takes the next tensor and reads it piece by piece into its memory, hashing every piece
while it is in the cache; so new memory is touched first by several threads, and the checksums
cost no second pass. Knows entries of a safetensors file, no manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import _C
from ..safetensors_format import Entry, FormatError
from . import disk

if TYPE_CHECKING:
    Part = tuple[Entry, memoryview]

__all__ = ["read_parts"]

_MOST = 4  # threads: what memory and page cache can serve
_TELL_S = 0.2
_WORTH_IT = 8 << 20  # bytes of a file; below, starting a thread costs more


def read_parts(
    fd: int, base: int, parts: Sequence[Part], moved: Callable[[int], None] = lambda _: None
) -> dict[str, str]:
    """Fill the memory of tensors; gives the checksum of each by name.

    Parameters
    ----------
    fd : int
        The file.
    base : int
        Where in it the data begin.
    parts : sequence
        Entries and their memory, of their size.
    moved : callable, optional
        Is told in this thread, now and then, how many more bytes have been read.

    Raises
    ------
    FormatError
        If the file ends early.
    OSError
        If the system refuses.
    """
    work = _Work(fd, base, parts, moved)
    size = sum(len(memory) for _, memory in parts)
    count = min(_C.get_num_threads(), _MOST, len(parts)) if size >= _WORTH_IT else 1
    helpers = [threading.Thread(target=work.run_beside, daemon=True) for _ in range(count - 1)]
    try:
        for helper in helpers:
            helper.start()
        work.run(tells=True)  # this thread too; it is the one that Ctrl-C reaches
        for helper in helpers:
            while helper.is_alive():
                helper.join(_TELL_S)
                work.tell()
    except BaseException:
        work.stop = True
        for helper in helpers:
            if helper.ident is not None:
                helper.join()  # for the piece that it reads, at most
        raise
    if work.failure is not None:
        raise work.failure
    return work.sums


class _Work:
    """Tensors to be read, taken by several threads; the largest first, so that all end together."""

    def __init__(
        self, fd: int, base: int, parts: Sequence[Part], moved: Callable[[int], None]
    ) -> None:
        self.stop = False
        self.failure: BaseException | None = None  # the first one of a helper
        self.sums: dict[str, str] = {}
        self._moved = moved
        self._done: list[list[int]] = []  # bytes so far: one cell per thread, which alone writes it
        self._told = 0
        self._fd = fd
        self._base = base
        self._left = sorted(parts, key=lambda part: len(part[1]))

    def run_beside(self) -> None:
        """Work as a helper: what goes wrong is kept for the caller."""
        try:
            self.run()
        except BaseException as error:
            self.failure = self.failure or error
            self.stop = True

    def run(self, tells: bool = False) -> None:
        """Read tensors until none is left; the thread that `tells` says how far all are."""
        done = [0]
        self._done.append(done)
        while not self.stop:
            try:
                entry, memory = self._left.pop()  # one step, in whatever thread
            except IndexError:
                return
            self._read(entry, memory)
            done[0] += len(memory)
            if tells:
                self.tell()

    def tell(self) -> None:
        """Say how many bytes have been read since the last time."""
        total = sum(cell[0] for cell in self._done)
        self._moved(total - self._told)
        self._told = total

    def _read(self, entry: Entry, memory: memoryview) -> None:
        running = disk.hasher()
        begin = self._base + entry.begin
        for at in range(0, len(memory), disk.READ_CHUNK):
            if self.stop:
                return
            piece = memory[at : at + disk.READ_CHUNK]
            got = disk.read_at(self._fd, piece, begin + at)
            if got < len(piece):
                raise FormatError(
                    f"[load] file ends early: in tensor {entry.name!r}, "
                    f"got {at + got} bytes, expected {len(memory)}"
                )
            running.update(piece)
        self.sums[entry.name] = running.hexdigest()
