# SPDX-License-Identifier: Apache-2.0
"""What a tracker is: the contract that built-in trackers and those of users fill in.

Knows no Accelerator and no particular tracker.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

__all__ = ["BlankTracker", "GeneralTracker", "on_main_process"]

P = ParamSpec("P")
T = TypeVar("T")


def on_main_process(function: Callable[P, T]) -> Callable[P, T | None]:
    """Run a tracker's method on the main process only, where its ``main_process_only`` says so.

    Which process this is, is asked at the call and not before.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if getattr(args[0], "main_process_only", False):
            from ..state import PartialState

            if not PartialState().is_main_process:
                return None
        return function(*args, **kwargs)

    return run


class GeneralTracker:
    """Base of all trackers.

    A subclass sets ``name`` (str) and ``requires_logging_directory`` (bool), has a property
    ``tracker`` that gives what it wraps, and overrides what it needs of the methods below. Its
    constructor gets the project's name, then the logging directory if it requires one, then the
    ``init_kwargs`` meant for it, and calls ``super().__init__()``.

    Attributes
    ----------
    main_process_only : bool
        Whether ``on_main_process`` keeps its methods to the main process.

    Raises
    ------
    NotImplementedError
        When made without one of the three; the message names what is missing.
    """

    main_process_only = True

    def __init__(self, _blank: bool = False) -> None:
        if _blank:
            return
        required = ("name", "requires_logging_directory", "tracker")
        # dir(): `tracker` is a property, whose value may exist only after start().
        missing = [name for name in required if name not in dir(self)]
        if missing:
            raise NotImplementedError(
                f"[{type(self).__name__}] the tracker lacks required attributes: define "
                + ", ".join(f"`{name}`" for name in missing)
                + " in its class"
            )

    def start(self) -> None:
        """Begin the run: files and connections are opened here, not in the constructor."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Record what the run was started with.

        Parameters
        ----------
        values : dict
            Hyperparameters: bool, str, float, int or None by name.
        """

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record values.

        Parameters
        ----------
        values : dict
            Numbers or text by name.
        step : int, optional
            The step that they belong to.
        **kwargs
            ``log_kwargs`` meant for this tracker.
        """

    def finish(self) -> None:
        """End the run."""


class _Nothing:
    """Every attribute and every call of it gives itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self


class BlankTracker(GeneralTracker):
    """What ``get_tracker`` gives where no tracker runs: takes every call and does nothing.

    So a script need not ask which process it is in before it uses a tracker.
    """

    name = "blank"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__(_blank=True)

    @property
    def tracker(self) -> Any:
        """Takes every call and does nothing."""
        return _Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Nothing()
