# SPDX-License-Identifier: Apache-2.0
"""Which trackers there are by name, and which of them ``log_with`` asks for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ..utils.dataclasses import LoggerType
from .base import GeneralTracker
from .files import CSVTracker, JSONLTracker
from .tensorboard import TensorBoardTracker
from .wandb_tracker import WandBTracker

__all__ = ["Chosen", "filter_trackers", "get_available_trackers", "register_tracker_class"]

#: A tracker by name (made at init_trackers), a class of one, or one that is made already.
Chosen = str | type[GeneralTracker] | GeneralTracker

_BUILT_IN: Mapping[str, type[GeneralTracker]] = {
    "tensorboard": TensorBoardTracker,
    "csv": CSVTracker,
    "jsonl": JSONLTracker,
    "wandb": WandBTracker,
}
_classes: dict[str, type[GeneralTracker]] = dict(_BUILT_IN)
_INSTALL = {"tensorboard": "pip install 'paceline[tensorboard]'", "wandb": "pip install wandb"}


def register_tracker_class(tracker_class: type[GeneralTracker]) -> None:
    """Make a tracker known by its ``name``, so that ``log_with`` may name it.

    Parameters
    ----------
    tracker_class : type
        A subclass of `GeneralTracker` with a ``name`` and ``requires_logging_directory``.

    Raises
    ------
    ValueError
        When it is not one, or lacks either.
    """
    if not (isinstance(tracker_class, type) and issubclass(tracker_class, GeneralTracker)):
        raise ValueError(
            f"[register_tracker_class] got {tracker_class!r}, expected a subclass of GeneralTracker"
        )
    for attribute in ("name", "requires_logging_directory"):
        if getattr(tracker_class, attribute, None) in (None, ""):
            raise ValueError(
                f"[register_tracker_class] {tracker_class.__name__} must define "
                f"`{attribute}` as a class attribute"
            )
    name = str(tracker_class.name)  # type: ignore[attr-defined]  # looked for just above
    if name in _classes and _classes[name] is not tracker_class:
        warnings.warn(
            f"a tracker named {name!r} is registered already: {tracker_class.__name__} replaces it",
            stacklevel=2,
        )
    _classes[name] = tracker_class


def tracker_class_of(name: str) -> type[GeneralTracker]:
    """Give the class of that name."""
    return _classes[name]


def get_available_trackers() -> list[str]:
    """Give the names of the trackers that can be used here."""
    return [name for name in _classes if _is_available(name)]


def _is_available(name: str) -> bool:
    ask: Callable[[], bool] | None = getattr(_classes[name], "is_available", None)
    return ask is None or ask()


def filter_trackers(
    log_with: Any, logging_dir: str | os.PathLike[str] | None = None
) -> list[Chosen]:
    """Give the trackers that ``log_with`` asks for, each once.

    Parameters
    ----------
    log_with : str, LoggerType, GeneralTracker, class of one, or a list of these
        ``"all"`` means all that are available here.
    logging_dir : path, optional
        Where trackers that write files would put them.

    Raises
    ------
    ValueError
        For an unknown name, or a tracker that requires a directory when there is none.
    NotImplementedError
        For a tracker that Accelerate has and paceline has not.
    """
    if log_with is None:
        return []
    asked = list(log_with) if isinstance(log_with, (list, tuple)) else [log_with]
    chosen: list[Chosen] = []
    for one in asked:
        found = get_available_trackers() if str(one) == "all" else _known(one)
        chosen += [item for item in found if item not in chosen]
    for item in chosen:
        cls = _classes[item] if isinstance(item, str) else item
        made = isinstance(item, GeneralTracker)
        if not made and getattr(cls, "requires_logging_directory", False) and logging_dir is None:
            name = getattr(cls, "name", item)
            raise ValueError(
                f"Logging with `{name}` requires a `logging_dir`: pass project_dir=..., or "
                "project_config=ProjectConfiguration(logging_dir=...), to Accelerator"
            )
    if asked and not chosen:
        _warn_none(asked)
    return chosen


def _known(one: Any) -> list[Chosen]:
    if isinstance(one, GeneralTracker) or (
        isinstance(one, type) and issubclass(one, GeneralTracker)
    ):
        return [one]
    name = str(one)
    if name in _classes:
        return [name] if _is_available(name) else []
    if name in LoggerType.list():
        raise NotImplementedError(
            f"the tracker {name!r} is not built in: wrap it in a subclass of GeneralTracker and "
            "call paceline.tracking.register_tracker_class(cls), or pass an instance to log_with"
        )
    raise ValueError(
        f"Unsupported logging capability: {one}. Choose between {['all', *_classes]}, or pass a "
        "GeneralTracker"
    )


def _warn_none(asked: list[Any]) -> None:
    hints = [_INSTALL[str(one)] for one in asked if str(one) in _INSTALL]
    warnings.warn(
        f"log_with={[str(one) for one in asked]} was passed, but what these trackers need is not "
        f"installed, so nothing will be recorded{': ' + '; '.join(hints) if hints else ''}",
        stacklevel=4,
    )
