# SPDX-License-Identifier: Apache-2.0
"""Switching the recording of gradients on and off, as a context or a decorator.

Threads: the state belongs to the thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from paceline import _C

__all__ = ["enable_grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled"]

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])


class _GradMode:
    """Sets the state on entry and puts the former one back on exit; may be nested."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_C.set_grad_enabled(self._on))

    def __exit__(self, *_: object) -> None:
        _C.set_grad_enabled(self._before.pop())

    def __call__(self, function: F) -> F:
        on = self._on

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = _C.set_grad_enabled(on)
            try:
                return function(*args, **kwargs)
            finally:
                _C.set_grad_enabled(before)

        return wrapped  # type: ignore[return-value]


class no_grad(_GradMode):  # noqa: N801
    """Record nothing: results need no gradient.

    Examples
    --------
    >>> import paceline
    >>> x = paceline.ones(2, requires_grad=True)
    >>> with paceline.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        # Also without brackets: @no_grad
        self = super().__new__(cls)
        if function is None:
            return self
        self.__init__()  # type: ignore[misc]
        return self(function)

    def __init__(self) -> None:
        super().__init__(False)


class inference_mode(_GradMode):  # noqa: N801
    """As `no_grad`; here the two do not differ."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__(not mode)


class enable_grad(_GradMode):  # noqa: N801
    """Record again inside a `no_grad`."""

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_GradMode):  # noqa: N801
    """Set the state: at once when called, until the end of the block when entered."""

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        self._called_in = _C.set_grad_enabled(mode)

    def __enter__(self) -> None:
        self._before.append(self._called_in)
        _C.set_grad_enabled(self._on)

    def __call__(self, function: F) -> F:
        _C.set_grad_enabled(self._called_in)
        return super().__call__(function)


def is_grad_enabled() -> bool:
    """Whether operations are recorded in this thread."""
    return _C.is_grad_enabled()
