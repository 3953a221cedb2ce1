# SPDX-License-Identifier: Apache-2.0
"""The exceptions of paceline.

The C core names an exception class per status (``csrc/base/base.h``, ``PL_STATUS_MAP``); the
binding looks the name up here first and then in ``builtins``. Each class also derives from the
built-in that a caller would catch without knowing paceline. Nothing here imports the package.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CollectiveMismatchError",
    "CollectiveTimeoutError",
    "ConfigError",
    "DeviceError",
    "InternalError",
    "NonFiniteError",
    "PacelineError",
    "PeerLostError",
    "RemoteError",
    "RendezvousError",
]


class PacelineError(Exception):
    """Base of every exception that paceline defines."""


class _CollectiveError(PacelineError):
    """What the failures of a collective have in common.

    Attributes
    ----------
    op : str
        Name of the collective this rank was in, ``"all_reduce"``; empty if it was in none.
    seq : int
        Its sequence number in the group, -1 if unknown.
    call_site : str
        Where this rank called it, ``"train.py:31 in main"``; empty if unknown.
    dead_ranks : tuple of int
        Ranks that died or left, empty where the failure is not about that.
    """

    op: str = ""
    seq: int = -1
    call_site: str = ""
    dead_ranks: tuple[int, ...] = ()


class PeerLostError(_CollectiveError, ConnectionError):
    """Another rank died, or finished while this one still waited for it.

    Attributes
    ----------
    dead_ranks : tuple of int
        The ranks that are gone; the same on every survivor.
    op : str
        Name of the collective this rank was in.
    seq : int
        Sequence number of that collective.
    call_site : str
        Where this rank called it.
    """


class RemoteError(_CollectiveError, RuntimeError):
    """Another rank raised an exception in its own code.

    Attributes
    ----------
    rank : int
        The rank that raised, -1 if unknown.
    remote_type : str
        Class name of its exception, ``"ValueError"``.
    remote_message : str
        Text of its exception.
    op : str
        Name of the collective this rank was in.
    seq : int
        Sequence number of that collective.
    call_site : str
        Where this rank called it.
    """

    rank: int = -1
    remote_type: str = ""
    remote_message: str = ""


class CollectiveMismatchError(_CollectiveError, RuntimeError):
    """The ranks called different collectives, or the same one with different arguments.

    The text is a table with one line per rank, the differing field first.
    """


class CollectiveTimeoutError(_CollectiveError, TimeoutError):
    """A collective did not complete before its deadline; the text names the missing ranks."""


class RendezvousError(PacelineError, ConnectionError):
    """The ranks of a job could not find one another, or disagreed when they did.

    Attributes
    ----------
    joined_ranks : tuple of int
        Ranks that had arrived, as far as this rank knows.
    missing_ranks : tuple of int
        Ranks that had not.
    dead_ranks : tuple of int
        Ranks that arrived and then died.
    """

    joined_ranks: tuple[int, ...] = ()
    missing_ranks: tuple[int, ...] = ()
    dead_ranks: tuple[int, ...] = ()


class CheckpointError(PacelineError, RuntimeError, OSError):
    """A checkpoint could not be written, or is not whole, or does not fit what it is loaded into.

    It is raised on all ranks alike.

    Attributes
    ----------
    path : str
        The file or folder that it is about; empty if none.
    errno : int or None
        The system's error number, None where the system did not refuse anything.
    needed, free : int
        Bytes that were to be written, and that the disk had left; -1 if unknown.
    """

    path: str = ""
    needed: int = -1
    free: int = -1


class NonFiniteError(PacelineError, FloatingPointError):
    """A loss or a gradient is NaN or infinite, and ``NonFiniteKwargs(action="raise")`` was given.

    It is raised on all ranks alike, before the parameters are touched.
    """


class ConfigError(PacelineError, ValueError):
    """A setting, environment variable or configuration file holds a value that cannot be used."""


class DeviceError(PacelineError, RuntimeError):
    """A device or the library that drives it failed."""


class InternalError(PacelineError, RuntimeError):
    """A bug in paceline: an assertion of its own did not hold. Please report it."""
