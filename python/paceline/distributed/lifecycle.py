# SPDX-License-Identifier: Apache-2.0
"""How a process leaves its groups, so that its peers learn at once why.

Three ways out, each announced before the process is gone: an uncaught exception (peers raise
RemoteError with its type and message), the end of the process by its exit code (after 0 peers
that still wait are told that this rank has finished, after another one they raise RemoteError),
and ``close``. A process that is killed announces nothing; the core sees that by its pidfd.
Exceptions of threads do not count: Python goes on after them.

A forked child is not the rank: it announces nothing and only forgets the groups.
"""

from __future__ import annotations

import atexit
import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from paceline.distributed.error_file import write_error_file

if TYPE_CHECKING:
    from paceline.distributed.process_group import ProcessGroup

_groups: list[ProcessGroup] = []  # alive, in the order of making
_pid = 0  # of the process that made them
_previous_hook: Any = None


def watch_over(group: ProcessGroup) -> None:
    """Announce how this process ends to the peers of `group`, from now on."""
    global _pid
    if _pid != os.getpid():
        _groups.clear()
        if _pid == 0:
            _install()
        _pid = os.getpid()
    _groups.append(group)


def close(group: ProcessGroup) -> None:
    """Leave `group` in order; closing it twice is legal."""
    if group in _groups:
        _groups.remove(group)
    if group.is_closed:
        return
    native = group.detach()
    if _is_rank():
        native.announce_finished()
    native.close()


def alive() -> list[ProcessGroup]:
    """Return the groups of this process that are not closed."""
    return list(_groups) if _is_rank() else []


def is_own(group: ProcessGroup) -> bool:
    """Whether `group` is alive and was made by this process, not by the one it was forked from."""
    return group in alive()


def _is_rank() -> bool:
    return _pid == os.getpid()


def _install() -> None:
    global _previous_hook
    _previous_hook = sys.excepthook
    sys.excepthook = _on_exception
    atexit.register(_on_exit)


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a user's __str__ must not hide that there was an exception
        text = ""
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _on_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if _is_rank():
        kind_name, _, message = _describe(error).partition(": ")
        write_error_file(kind_name, message)
    for group in alive():
        group.native.announce_failed(_describe(error))
    _previous_hook(kind, error, traceback)


def _on_exit() -> None:
    # The exit code is not known here (SystemExit reaches no hook), so the core announces it when
    # the process ends; the groups stay whole until then, also for later exit handlers.
    # An exception that ended the process without our hook being called: another one replaced it.
    error = getattr(sys, "last_value", None)
    is_interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    for group in alive():
        if error is not None and not is_interactive:
            group.native.announce_failed(_describe(error))
        group.native.leave_at_exit()
