# SPDX-License-Identifier: Apache-2.0
"""Loggers that speak once per run instead of once per process.

``ACCELERATE_LOG_LEVEL=info`` makes paceline's own messages visible; by default it is silent.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from .environment import read_log_level
from .state import PartialState

__all__ = ["MultiProcessAdapter", "get_logger"]

# What warning_once has said, in this process.
_said: set[tuple[object, ...]] = set()


class MultiProcessAdapter(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take ``main_process_only`` (default True) and ``in_order``.

    With ``in_order=True`` all processes write, one after the other; all must make the call.

    Raises
    ------
    RuntimeError
        When something is logged before the state exists: nobody knows yet who the main process is.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log on the main process, or on all, with the rank in front."""
        if not PartialState.is_initialized():
            raise RuntimeError(
                "[get_logger] this logger asks which process it is in: make an Accelerator() or "
                "a PartialState() before logging"
            )
        main_only = kwargs.pop("main_process_only", True)
        in_order = kwargs.pop("in_order", False)
        kwargs.setdefault("stacklevel", 2)
        if not self.isEnabledFor(level) and not in_order:
            return
        state = PartialState()
        if in_order:
            for rank in range(state.num_processes):
                if rank == state.process_index:
                    self._write(level, msg, args, kwargs)
                state.wait_for_everyone()
        elif state.is_main_process or not main_only:
            self._write(level, msg, args, kwargs)

    def warning_once(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Warn as ``warning`` does, the first time that it is called with these arguments."""
        said = (self.name, str(msg), args, tuple(sorted(kwargs.items())))
        if said not in _said:
            _said.add(said)
            self.warning(msg, *args, **kwargs, stacklevel=3)

    def _write(
        self, level: int, msg: object, args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs["stacklevel"] + 1
            text, extra = self.process(msg, kwargs)
            self.logger.log(level, text, *args, **extra)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the rank in front where more than one process may write."""
        state = PartialState()
        if state.use_distributed:
            msg = f"[RANK {state.process_index}] {msg}"
        return msg, kwargs


class _UnlessConfigured(logging.StreamHandler[Any]):
    """Writes to stderr while the program has set up no logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        # A record passes the handlers of its logger and of those above it: one of them writes.
        if not logging.root.handlers and not hasattr(record, "written"):
            record.written = True
            super().emit(record)


def get_logger(name: str, log_level: str | None = None) -> MultiProcessAdapter:
    """Give a logger that writes on the main process only, unless told otherwise.

    Parameters
    ----------
    name : str
        As for ``logging.getLogger``; usually ``__name__``.
    log_level : str, optional
        Level, in any case; by default that of ``ACCELERATE_LOG_LEVEL``, if set.

    Returns
    -------
    MultiProcessAdapter
        Its methods also take ``main_process_only=False`` and ``in_order=True``.
    """
    level = log_level if log_level is not None else read_log_level()
    logger = logging.getLogger(name)
    if level is not None:
        logger.setLevel(level.upper())
        logger.root.setLevel(level.upper())
        # Without a handler Python shows warnings only, and this level was asked for.
        for one in (logger, logging.getLogger(__package__)):
            if not one.handlers:
                one.addHandler(_UnlessConfigured())
    return MultiProcessAdapter(logger, {})
