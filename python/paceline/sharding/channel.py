# SPDX-License-Identifier: Apache-2.0
"""Nested batches from rank 0 to the others: a header with their structure, then the tensors.

What failed on rank 0 travels in the header, so that the others raise instead of waiting. Knows
nothing of rounds and samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engines import is_tensor
from ..errors import RemoteError
from ..utils.operations import honor_type
from .plans import agree

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine

__all__ = ["Channel"]

Spec = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor in the structure that a header carries."""

    at: int


@dataclass(frozen=True)
class _Header:
    skeletons: list[Any] = field(default_factory=list)  # tensors replaced by slots
    specs: list[list[Spec]] = field(default_factory=list)  # shape and dtype of each tensor
    note: Any = None
    error: tuple[str, str] | None = None  # class and text of what failed on rank 0


class Channel:
    """Carries batches from rank 0 to all ranks; every call is collective.

    Parameters
    ----------
    engine : Engine
        Whose tensors.
    group : ProcessGroup
        Who takes part.
    """

    def __init__(self, engine: Engine, group: ProcessGroup) -> None:
        self._engine = engine
        self._group = group

    def send(self, parts: Sequence[Any], note: Any) -> Any:
        """On rank 0: give each rank its part, or the only part to all; gives rank 0's own."""
        flat = [_flatten(part) for part in parts]
        specs = [[self._engine.describe(tensor) for tensor in tensors] for _, tensors in flat]
        header = _Header([skeleton for skeleton, _ in flat], specs, note)
        agree(header, self._group)
        return self._exchange(header, [tensors for _, tensors in flat])

    def end(self) -> None:
        """On rank 0: tell the others that nothing comes any more."""
        agree(_Header(), self._group)

    def fail(self, error: Exception) -> None:
        """On rank 0: make the others raise."""
        agree(_Header(error=(type(error).__name__, str(error))), self._group)

    def receive(self) -> tuple[Any, Any] | None:
        """On the other ranks: give this rank's part and the note; None at the end.

        Raises
        ------
        RemoteError
            When rank 0 called ``fail``.
        """
        header: _Header = agree(None, self._group)
        if header.error is not None:
            kind, text = header.error
            error = RemoteError(f"[dispatch] rank 0 could not read the next batch: {kind}: {text}")
            error.rank, error.remote_type, error.remote_message = 0, kind, text
            error.op = "dispatch"
            raise error
        if not header.skeletons:
            return None
        return self._exchange(header, None), header.note

    def _exchange(self, header: _Header, own: list[list[Any]] | None) -> Any:
        joined = _edges(header.specs)
        if joined is None:
            mine = self._one_by_one(header.specs, own)
        else:
            mine = [self._joined(header.specs, own, at, joined) for at in range(len(joined[0]))]
        common = len(header.skeletons) == 1
        return _fill(header.skeletons[0 if common else self._group.rank], mine)

    def _joined(
        self, specs: list[list[Spec]], own: list[list[Any]] | None, at: int, edges: list[list[int]]
    ) -> Any:
        engine, rank = self._engine, self._group.rank
        shape, dtype = specs[0][at]
        if own is None:
            whole = engine.empty((edges[-1][at], *shape[1:]), dtype)
        else:
            whole = engine.cat([tensors[at] for tensors in own])
        whole = engine.broadcast(whole, 0, self._group)
        if len(specs) == 1:
            return whole
        return engine.slice(whole, edges[rank][at], edges[rank + 1][at])

    def _one_by_one(self, specs: list[list[Spec]], own: list[list[Any]] | None) -> list[Any]:
        mine: list[Any] = []
        for rank, of_rank in enumerate(specs):
            for at, (shape, dtype) in enumerate(of_rank):
                tensor = self._engine.empty(shape, dtype) if own is None else own[rank][at]
                tensor = self._engine.broadcast(tensor, 0, self._group)
                if rank == self._group.rank or len(specs) == 1:
                    mine.append(tensor)
        return mine


def _edges(specs: list[list[Spec]]) -> list[list[int]] | None:
    """Give where each rank's part of each tensor begins, if parts can be joined; else None."""
    edges = [[0] * len(specs[0])]
    for of_rank in specs:
        if len(of_rank) != len(specs[0]):
            return None
        for (shape, dtype), (first, first_dtype) in zip(of_rank, specs[0], strict=True):
            if not shape or shape[1:] != first[1:] or not first or dtype != first_dtype:
                return None
        last = edges[-1]
        edges.append([edge + shape[0] for edge, (shape, _) in zip(last, of_rank, strict=True)])
    return edges


def _flatten(data: Any) -> tuple[Any, list[Any]]:
    """Take the tensors out of nested data, and leave slots."""
    tensors: list[Any] = []

    def walk(item: Any) -> Any:
        if is_tensor(item):
            tensors.append(item)
            return _Slot(len(tensors) - 1)
        if isinstance(item, (list, tuple)):
            return honor_type(item, [walk(one) for one in item])
        if isinstance(item, Mapping):
            done = {key: walk(value) for key, value in item.items()}
            return done if type(item) is dict else type(item)(done)  # type: ignore[call-arg]
        return item

    return walk(data), tensors


def _fill(skeleton: Any, tensors: Sequence[Any]) -> Any:
    """Put tensors into their slots."""
    if isinstance(skeleton, _Slot):
        return tensors[skeleton.at]
    if isinstance(skeleton, (list, tuple)):
        return honor_type(skeleton, [_fill(one, tensors) for one in skeleton])
    if isinstance(skeleton, Mapping):
        done = {key: _fill(value, tensors) for key, value in skeleton.items()}
        return done if type(skeleton) is dict else type(skeleton)(done)  # type: ignore[call-arg]
    return skeleton
