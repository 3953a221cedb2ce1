# SPDX-License-Identifier: Apache-2.0
"""Marks stretches of Python for a profile: costs next to nothing while none is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

from paceline import _C

__all__ = ["Kind", "each", "span"]

T = TypeVar("T")


class Kind(IntEnum):
    """What a stretch of time is spent on: ``pl_trace_kind`` of csrc/base/trace.h."""

    OPERATOR = 0
    BACKWARD = 1
    COMMUNICATION = 2
    BUCKET = 3
    WAIT = 4
    DATA = 5
    OPTIMIZER = 6
    USER = 7


class span:  # noqa: N801 - reads as a verb: with span(Kind.DATA, "batch")
    """A context whose time shows in a profile under a name.

    Parameters
    ----------
    kind : Kind
        What the time is spent on.
    name : str
        At most 31 bytes are kept.
    """

    __slots__ = ("_kind", "_name", "_since")

    def __init__(self, kind: Kind, name: str) -> None:
        self._kind = kind
        self._name = name
        self._since = 0

    def __enter__(self) -> None:
        self._since = _C.trace_begin()

    def __exit__(self, *_: object) -> None:
        if self._since:
            _C.trace_end(self._since, self._kind, self._name)


def each(items: Iterable[T], kind: Kind, name: str) -> Iterator[T]:
    """Give the items, the time of getting each of them in a span of its own."""
    iterator = iter(items)
    while True:
        with span(kind, name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
