# SPDX-License-Identifier: Apache-2.0
"""Shares what rank 0 read for a round out to the ranks: one batch for each.

A round that is full goes out as it is, whatever the sizes of its batches. The epoch's last round
is joined and divided evenly, as Accelerate does it, completed from the epoch's first samples.
Knows nested batches and rows, and tensors through their engines only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engines import engine_of_tensor, is_tensor
from ..utils.operations import find_batch_size, honor_type
from .shards import Share

__all__ = ["Round", "head_of", "join_round", "rows_of", "share_out", "take_rows"]


@dataclass(frozen=True)
class Round:
    """What each rank gets.

    Attributes
    ----------
    parts : list
        A batch per rank; None for a rank that gets none.
    valid : list
        Real samples at the head of each; None if all of it is.
    """

    parts: list[Any]
    valid: list[int | None]


def rows_of(batch: Any) -> int | None:
    """Count the samples of a batch: the length of its first tensor, else of a plain list."""
    rows = find_batch_size(batch)
    if rows is None and isinstance(batch, list) and not _has_tensor(batch):
        return len(batch)
    return rows


def _has_tensor(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return any(_has_tensor(item) for item in data)
    if isinstance(data, Mapping):
        return any(_has_tensor(item) for item in data.values())
    return is_tensor(data)


def _map_rows(func: Callable[..., Any], rows: Sequence[int], *batches: Any) -> Any:
    """Apply ``func`` to what has one row per sample: tensors, and lists without tensors."""
    first = batches[0]
    if is_tensor(first):
        engine = engine_of_tensor(first)
        shapes = [engine.shape(tensor) for tensor in batches]
        per_sample = all(s and s[0] == n for s, n in zip(shapes, rows, strict=True))
        return func(batches, engine) if per_sample else first
    if isinstance(first, Mapping):
        done = {k: _map_rows(func, rows, *(batch[k] for batch in batches)) for k in first}
        return done if type(first) is dict else type(first)(done)  # type: ignore[call-arg]
    if isinstance(first, (list, tuple)):
        lengths = [len(batch) for batch in batches]
        if lengths == list(rows) and not _has_tensor(first):
            return func(batches, None)
        if len(set(lengths)) > 1:
            raise ValueError(f"batches of one round differ in structure: got lengths {lengths}")
        inner = [_map_rows(func, rows, *items) for items in zip(*batches, strict=True)]
        return honor_type(first, inner)
    return first


def take_rows(batch: Any, start: int, stop: int, rows: int) -> Any:
    """Give samples start to stop of a batch of ``rows``."""

    def take(batches: tuple[Any], engine: Any) -> Any:
        whole = batches[0]
        return whole[start:stop] if engine is None else engine.slice(whole, start, stop)

    return _map_rows(take, [rows], batch)


def _join(batches: Sequence[Any], rows: Sequence[int]) -> Any:
    """Join batches along their samples; ValueError where they do not fit."""

    def join(parts: tuple[Any, ...], engine: Any) -> Any:
        if engine is None:
            return honor_type(parts[0], [item for part in parts for item in part])
        kinds = {(engine.shape(part)[1:], engine.describe(part)[1]) for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"batches of one round differ in shape: got {sorted(kinds)}")
        return engine.cat(parts)

    return batches[0] if len(batches) == 1 else _map_rows(join, rows, *batches)


def head_of(batches: Sequence[Any], size: int) -> Any:
    """Give the first samples of a round, up to ``size``: what completes a last round."""
    rows = rows_of(batches[0])
    if rows is None:
        return batches[0]
    head, have = batches[0], rows
    for batch in batches[1:]:
        more = rows_of(batch)
        if have >= size or more is None:
            break
        try:
            head, have = _join([head, batch], [have, more]), have + more
        except (KeyError, TypeError, ValueError):
            break
    return take_rows(head, 0, min(size, have), have)


def share_out(batches: Sequence[Any], last: bool, head: Any, share: Share) -> Round:
    """Divide a round.

    Parameters
    ----------
    batches : sequence
        What rank 0 read: one batch where ``share.split``, else up to one per rank.
    last : bool
        Whether it is the epoch's last round.
    head : object
        Some of the epoch's first samples, at most one per rank.
    share : Share
        The rules.
    """
    world = share.world
    rows = [rows_of(batch) for batch in batches]
    full = not share.split and len(batches) == world
    if full and (not last or len(set(rows)) == 1):
        return Round(list(batches), [None] * world)
    known = [n for n in rows if n is not None]
    if len(known) == len(rows):
        try:
            return _divide(_join(batches, known), sum(known), head, share)
        except (KeyError, TypeError, ValueError):
            pass  # of different structure: they go out whole
    if share.split:
        raise ValueError(
            f"[dispatch] split_batches cannot divide a {type(batches[0]).__name__}: expected "
            "tensors or lists with a row per sample; use split_batches=False"
        )
    missing = world - len(batches)
    fill = [batches[0] if share.even else None] * missing
    return Round([*batches, *fill], [None] * len(batches) + [0] * missing)


def join_round(batches: Sequence[Any], head: Any, share: Share) -> tuple[Any, int, int]:
    """Join a round, completed so that it divides; gives it, its samples, and the real ones.

    Raises
    ------
    ValueError
        Where the batches cannot be joined.
    """
    rows = [rows_of(batch) for batch in batches]
    known = [n for n in rows if n is not None]
    if len(known) < len(rows):
        raise ValueError("[dispatch] slice_fn_for_dispatch needs batches with tensors in them")
    whole, real = _join(batches, known), sum(known)
    wanted = -(-real // share.world) * share.world
    if wanted == real or not share.even:
        return whole, real, real
    whole, done = _complete(whole, real, head, wanted)
    return whole, done, real


def _divide(whole: Any, real: int, head: Any, share: Share) -> Round:
    world = share.world
    each, rest = divmod(real, world)
    rows = real
    if rest and share.even:
        each, rest = each + 1, 0
        whole, rows = _complete(whole, real, head, each * world)
    parts: list[Any] = []
    valid: list[int | None] = []
    start = 0
    for rank in range(world):
        stop = start + each + (rank < rest)
        parts.append(take_rows(whole, start, stop, rows) if stop > start else None)
        valid.append(None if stop <= real else max(0, real - start))
        start = stop
    return Round(parts, valid)


def _complete(whole: Any, rows: int, head: Any, wanted: int) -> tuple[Any, int]:
    have = rows_of(head) or 0
    while rows < wanted:
        more = min(have, wanted - rows)
        whole = _join([whole, take_rows(head, 0, more, have)], [rows, more])
        rows += more
    return whole, rows
