# SPDX-License-Identifier: Apache-2.0
"""Copies of what each rank prints, in files, in torchrun's layout. Knows nothing of processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LogFolder"]

_NAMES = {1: "stdout.log", 2: "stderr.log"}
_ALL = -1


@dataclass
class LogFolder:
    """Where the copies go.

    Attributes
    ----------
    path : str
        The folder of the run.
    streams : mapping
        By rank, -1 for the others: 1 stdout, 2 stderr, 3 both, 0 neither.
    """

    path: str
    streams: Mapping[int, int]
    _open: list[int] = field(default_factory=list)

    def descriptors(self, attempt: int, rank: int) -> tuple[int, int]:
        """Open the files of one rank.

        Parameters
        ----------
        attempt : int
            How often the job was restarted.
        rank : int
            Which rank.

        Returns
        -------
        tuple of int
            Descriptors for stdout and stderr, -1 where nothing is kept.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        which = self.streams.get(rank, self.streams.get(_ALL, 0))
        folder = os.path.join(self.path, f"attempt_{attempt}", str(rank))
        found = [-1, -1]
        for number, name in _NAMES.items():
            if which & number:
                os.makedirs(folder, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                found[number - 1] = os.open(os.path.join(folder, name), flags, 0o666)
                self._open.append(found[number - 1])
        return found[0], found[1]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.pop())
