# SPDX-License-Identifier: Apache-2.0
"""How far the user's line is from here, for messages that name it."""

from __future__ import annotations

import sys

__all__ = ["frames_of_ours"]

# A context manager of ours is entered through contextlib.
_OURS = ("paceline", "contextlib")


def frames_of_ours() -> int:
    """Count the frames between the user's code and a collective that the caller calls.

    Returns
    -------
    int
        The ``depth`` argument of that collective: 1 if the user called the caller.
    """
    count = 0
    frame = sys._getframe(1)
    while True:
        module = str(frame.f_globals.get("__name__", ""))
        above = frame.f_back
        if module.partition(".")[0] not in _OURS or above is None:
            return count
        count += 1
        frame = above
