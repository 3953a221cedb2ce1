# SPDX-License-Identifier: Apache-2.0
"""Whole files only: written beside, then renamed, so that a reader sees the old one or the new one.

Loads the standard library only, for the command line's sake. Checkpoints, which must be whole over
several files and on all ranks, have ``checkpoint/disk.py`` and ``checkpoint/folder.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str, mode: str = "w", *, flush: bool = False) -> Iterator[IO[Any]]:
    """Open a new file that takes the place of ``path`` when the block ends without an exception.

    Parameters
    ----------
    path : str
        The file; its folder exists.
    mode : {"w", "wb"}
        Text is UTF-8, its line ends as written.
    flush : bool
        Wait until the disk has the file and its name, so that a machine may fail right after.

    Yields
    ------
    file
        What stands beside, under a hidden name; it is removed if the block raises.
    """
    folder, name = os.path.split(os.path.abspath(path))
    beside = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(beside, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    if flush:  # the renaming is on the disk only when the folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
