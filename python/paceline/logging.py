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


class MultiProcessAdapter(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take ``main_process_only`` (default True) and ``in_order``.

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
        if main_only:
            if state.is_main_process:
                self._write(level, msg, args, kwargs)
        elif not in_order:
            self._write(level, msg, args, kwargs)
        else:
            for rank in range(state.num_processes):
                if rank == state.process_index:
                    self._write(level, msg, args, kwargs)
                state.wait_for_everyone()

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
        if not logging.root.handlers:
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
        ours = logging.getLogger(__package__)
        if not ours.handlers:
            ours.addHandler(_UnlessConfigured())
    return MultiProcessAdapter(logger, {})
