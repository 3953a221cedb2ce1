# SPDX-License-Identifier: Apache-2.0
"""Functions of ``accelerate.utils`` about environment variables, for tests and launchers.

The only ones here that write the environment: the caller asked for it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

__all__ = [
    "clear_environment",
    "get_int_from_env",
    "parse_choice_from_env",
    "parse_flag_from_env",
    "patch_environment",
    "purge_accelerate_environment",
]

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def patch_environment(**kwargs: Any) -> Iterator[None]:
    """Set variables inside the block, and put back what was there.

    Parameters
    ----------
    **kwargs : object
        Name of a variable, in any case, and its value.

    Examples
    --------
    >>> import os
    >>> with patch_environment(color=1):
    ...     os.environ["COLOR"]
    '1'
    """
    names = {name.upper(): str(value) for name, value in kwargs.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def clear_environment() -> Iterator[None]:
    """Empty the environment inside the block, and put back exactly what was there."""
    before = dict(os.environ)
    os.environ.clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _kept() -> Iterator[None]:
    before = {k: v for k, v in os.environ.items() if k.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ.update(before)


def purge_accelerate_environment(func_or_cls: F) -> F:
    """Undo, after a function or each method of a class, its changes to ``ACCELERATE_`` variables.

    Parameters
    ----------
    func_or_cls : callable or class
        A function, a coroutine function, or a class; its subclasses are treated alike.
    """
    if inspect.isclass(func_or_cls):
        _purge_methods(func_or_cls)
        return func_or_cls
    if inspect.iscoroutinefunction(func_or_cls):

        @wraps(func_or_cls)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with _kept():
                return await func_or_cls(*args, **kwargs)

        return wait  # type: ignore[return-value]  # same signature, by wraps

    @wraps(func_or_cls)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _kept():
            return func_or_cls(*args, **kwargs)

    return run  # type: ignore[return-value]  # same signature, by wraps


def _purge_methods(cls: type[Any]) -> None:
    for name, value in list(vars(cls).items()):
        if inspect.isfunction(value) and name != "__init_subclass__":
            setattr(cls, name, purge_accelerate_environment(value))

    inherited = cls.__init_subclass__

    def also(subclass: type[Any], /, **kwargs: Any) -> None:
        inherited(**kwargs)
        _purge_methods(subclass)

    if "__init_subclass__" not in vars(cls):
        cls.__init_subclass__ = classmethod(also)  # type: ignore[assignment]  # what it is for


def parse_flag_from_env(key: str, default: bool = False) -> bool:
    """Read a yes or no from the environment."""
    from .other import str_to_bool

    return bool(str_to_bool(os.environ.get(key, str(default))))


def parse_choice_from_env(key: str, default: str = "no") -> str:
    """Read a word from the environment."""
    return os.environ.get(key, str(default))


def get_int_from_env(env_keys: Iterable[str], default: int) -> int:
    """Read an integer from the first of some variables that is set and not negative."""
    for key in env_keys:
        value = int(os.environ.get(key, -1))
        if value >= 0:
            return value
    return default
