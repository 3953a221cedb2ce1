# SPDX-License-Identifier: Apache-2.0
"""Gives each rank a terminal where the launcher has one, so that progress bars look right.

Standard output and standard error are looked at separately. Knows nothing of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from .streams import DescriptorSink, Sink

__all__ = ["open_stream", "sinks"]


def sinks(give_up: Callable[[], bool]) -> tuple[Sink, Sink]:
    """Make the sinks for this process's own standard output and standard error."""
    out = DescriptorSink(1, give_up)
    return out, DescriptorSink(2, give_up)


def open_stream(number: int) -> tuple[int, int]:
    """Open a pipe, or a pseudo-terminal where this process's own stream is a terminal.

    Parameters
    ----------
    number : int
        1 or 2.

    Returns
    -------
    tuple of int
        Descriptor to read from, descriptor for the rank.
    """
    if os.isatty(number):
        try:
            return _open_terminal(number)
        except (ImportError, OSError):  # no pseudo-terminals left, or none on this system
            pass
    return os.pipe()


def _open_terminal(like: int) -> tuple[int, int]:
    import fcntl
    import termios

    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # the real terminal adds the carriage returns
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    size = fcntl.ioctl(like, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    return master, slave
