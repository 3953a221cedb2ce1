# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch: decided once for all ranks, and given again from its record.

A record is small where a seed decides the order; else it holds the order itself, as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .. import _C
from .._call_site import frames_of_ours
from .shards import Epoch

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine

__all__ = ["ItemPlan", "Plan", "SeededPlan", "SequentialPlan", "agree"]

_I64 = 3


def agree(value: Any, group: ProcessGroup | None) -> Any:
    """Give rank 0's value on every rank."""
    if group is None:
        return value
    box = [value]
    group.broadcast_object_list(box, 0, depth=frames_of_ours())
    return box[0]


class Plan(Protocol):
    """Decides the order of an epoch."""

    def draw(self, epoch: int) -> Epoch:
        """Decide the order of an epoch. May be collective and may draw random numbers."""

    def again(self, record: dict[str, Any]) -> Epoch:
        """Give the order of a record that ``draw`` made; draws nothing."""

    def __len__(self) -> int:
        """Count the items of an epoch; TypeError where the sampler does not know."""


def _check_length(record: dict[str, Any], n: int) -> None:
    if record["n"] != n:
        raise ValueError(
            f"[load_state_dict] the data set has changed: got {n} samples, expected the "
            f"{record['n']} of the epoch that was saved"
        )


class SequentialPlan:
    """0, 1, 2, ... in every epoch.

    Parameters
    ----------
    sampler : sized
        What knows how many.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def draw(self, epoch: int) -> Epoch:
        """Give the order of an epoch."""
        n = len(self)
        return Epoch(n, record={"kind": "sequential", "n": n})

    def again(self, record: dict[str, Any]) -> Epoch:
        """Give the order of a record."""
        _check_length(record, len(self))
        return self.draw(0)

    def __len__(self) -> int:
        return len(self._sampler)


class SeededPlan:
    """A permutation per epoch, which a seed decides.

    Parameters
    ----------
    sampler : sized
        What knows how many.
    engine : Engine
        Whose permutations.
    seed_of : callable
        Gives the seed of an epoch; may be collective.
    """

    def __init__(self, sampler: Any, engine: Engine, seed_of: Callable[[int], int]) -> None:
        self._sampler = sampler
        self._engine = engine
        self._seed_of = seed_of

    def draw(self, epoch: int) -> Epoch:
        """Decide the order of an epoch."""
        return self._give(self._seed_of(epoch))

    def again(self, record: dict[str, Any]) -> Epoch:
        """Give the order of a record."""
        _check_length(record, len(self))
        return self._give(int(record["seed"]))

    def _give(self, seed: int) -> Epoch:
        n = len(self)
        record = {"kind": "seeded", "n": n, "seed": seed}
        return Epoch(n, self._engine.permutation(n, seed), None, record)

    def __len__(self) -> int:
        return len(self._sampler)


class ItemPlan:
    """Whatever a sampler of the user's gives: all of it is taken when the epoch begins.

    Rank 0's draw decides, whatever the sampler draws from (weights, Python's random, NumPy).

    Parameters
    ----------
    source : iterable
        Gives samples' indices, or batches of them.
    group : ProcessGroup or None
        Who must agree; None takes this process's own draw.
    owner : int, optional
        The rank whose share alone the sampler gives.
    """

    def __init__(self, source: Any, group: ProcessGroup | None, owner: int | None = None) -> None:
        self._source = source
        self._group = group
        self._owner = owner

    def draw(self, epoch: int) -> Epoch:
        """Take the sampler's items of a new epoch."""
        here = self._group is None or self._group.rank == 0
        items = agree([_plain(item) for item in self._source] if here else None, self._group)
        return Epoch(len(items), None, items, {**_record_of(items), "owner": self._owner})

    def again(self, record: dict[str, Any]) -> Epoch:
        """Give the items of a record; another rank's share is not ours, so that is drawn again."""
        if record.get("owner") != self._owner:
            return self.draw(0)
        items = _items_of(record)
        return Epoch(len(items), None, items, record)

    def __len__(self) -> int:
        return len(self._source)


def _plain(item: Any) -> Any:
    """Give an index or a batch of indices as numbers, where it is a tensor."""
    return item.tolist() if hasattr(item, "tolist") else item


def _integers(items: Sequence[Any]) -> bool:
    return all(type(item) is int for item in items)


def _record_of(items: list[Any]) -> dict[str, Any]:
    if _integers(items):
        return {"kind": "items", "n": len(items), "items": _C.from_data(items, _I64)}
    batches = [item for item in items if isinstance(item, (list, tuple)) and _integers(item)]
    if len(batches) < len(items):
        return {"kind": "objects", "n": len(items), "items": items}
    return {
        "kind": "lists",
        "n": len(items),
        "items": _C.from_data([index for batch in batches for index in batch], _I64),
        "sizes": _C.from_data([len(batch) for batch in batches], _I64),
    }


def _items_of(record: dict[str, Any]) -> list[Any]:
    items = record["items"]
    if record["kind"] == "objects":
        return list(items)
    flat = items.tolist()
    if record["kind"] == "items":
        return list(flat)
    batches, start = [], 0
    for size in record["sizes"].tolist():
        batches.append(flat[start : start + size])
        start += size
    return batches
