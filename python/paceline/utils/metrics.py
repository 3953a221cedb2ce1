# SPDX-License-Identifier: Apache-2.0
"""``gather_for_metrics``: every real sample of a round once, whatever was repeated.

Each rank knows how many samples at the head of its batch are real. One exchange tells all ranks
the shapes and those numbers; after it the tensors move, padded where lengths differ. What cannot
be joined is an error on all ranks, before anything moves.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from ..engines import engine_of_tensor, is_tensor
from .operations import gather_object_in, honor_type, recursively_apply

if TYPE_CHECKING:
    from ..data_loader import DataLoaderShard
    from ..distributed import ProcessGroup

__all__ = ["gather_for_metrics_in"]

Spec = tuple[tuple[int, ...], str]  # shape and dtype


@dataclass(frozen=True)
class _Kept:
    """How much of a rank's results is real: ``valid`` of ``rows``; all of it if valid is None."""

    valid: int | None
    rows: int | None

    def of(self, length: int) -> int:
        """Count the real ones among ``length`` results.

        Where there are several per sample (flattened tokens), all of a real sample's count. What
        has no row per sample belongs to the batch, and counts if any of the batch is real.
        """
        if self.valid is None:
            return length
        if self.rows and length % self.rows == 0:
            return length // self.rows * self.valid
        return length if self.valid else 0


def gather_for_metrics_in(
    group: ProcessGroup | None, loader: DataLoaderShard | None, data: Any, as_objects: bool
) -> Any:
    """Gather ``data`` and drop what is repeated; see ``Accelerator.gather_for_metrics``."""
    kept = _Kept(None, None) if loader is None else _Kept(loader.valid, loader.rows)
    as_objects = as_objects or not _has_only_tensors(data)
    if group is None:
        return gather_object_in(group, _by_rows(data)) if as_objects else data
    if as_objects:
        return _gather_objects(group, data, kept)
    specs: list[Spec] = []
    recursively_apply(lambda tensor: specs.append(_spec(tensor)), data)
    of_ranks, all_kept = _exchange(group, specs, kept)
    _check_structure(of_ranks)
    plans = [_Plan(at, [specs[at] for specs in of_ranks], all_kept) for at in range(len(specs))]
    each = iter(plans)
    return recursively_apply(lambda tensor: next(each).gather(group, tensor), data)


def _exchange(
    group: ProcessGroup, specs: list[Spec], kept: _Kept
) -> tuple[list[list[Spec]], list[_Kept]]:
    """Tell all ranks the shapes and what is real: three numbers, and more where shapes differ."""
    digest = blake2b(repr(specs).encode(), digest_size=8).digest()
    own = array("q", [*(-1 if n is None else n for n in (kept.valid, kept.rows)), 0])
    own[2] = int.from_bytes(digest, "little", signed=True)
    every = array("q", [0] * 3 * group.world_size)
    group.all_gather(every, own, depth=frames_of_ours())
    triples = [every[at : at + 3] for at in range(0, len(every), 3)]
    all_kept = [_Kept(*(None if n < 0 else n for n in triple[:2])) for triple in triples]
    if len({triple[2] for triple in triples}) == 1:
        return [specs] * group.world_size, all_kept
    return group.all_gather_object(specs, depth=frames_of_ours()), all_kept


def _has_only_tensors(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(_has_only_tensors(item) for item in data)
    if isinstance(data, Mapping):
        return all(_has_only_tensors(item) for item in data.values())
    return is_tensor(data)


def _spec(tensor: Any) -> Spec:
    return engine_of_tensor(tensor).describe(tensor)


def _check_structure(of_ranks: Sequence[list[Spec]]) -> None:
    counts = [len(specs) for specs in of_ranks]
    if len(set(counts)) > 1:
        raise ValueError(
            "[gather_for_metrics] the processes gave different numbers of tensors: got "
            f"{counts} by rank, expected the same structure on all"
        )


class _Plan:
    """How one tensor of every rank becomes one.

    Parameters
    ----------
    at : int
        Which tensor of the structure, for messages.
    specs : list of (shape, dtype)
        By rank.
    kept : list of _Kept
        By rank.
    """

    def __init__(self, at: int, specs: Sequence[Spec], kept: Sequence[_Kept]) -> None:
        # A scalar belongs to its batch: it counts if any of the batch is real.
        self.shapes = [shape or (1,) for shape, _ in specs]
        self.keep = [
            k.of(shape[0]) if shape else int(k.valid != 0)
            for k, (shape, _) in zip(kept, specs, strict=True)
        ]
        real = [i for i, n in enumerate(self.keep) if n] or [0]
        self.rest = self.shapes[real[0]][1:]
        self.dtype = specs[real[0]][1]
        odd = [i for i in real if self.shapes[i][1:] != self.rest or specs[i][1] != self.dtype]
        if odd or len({bool(shape) for shape, _ in specs}) > 1:
            each = ", ".join(f"rank {i}: {list(s)} {t}" for i, (s, t) in enumerate(specs))
            raise ValueError(
                f"[gather_for_metrics] tensor {at} cannot be joined along its samples: got {each}; "
                "make the other dimensions equal with pad_across_processes(tensor, dim=1), or "
                "gather a list of samples with use_gather_object=True"
            )

    def gather(self, group: ProcessGroup, tensor: Any) -> Any:
        """Give the real rows of all ranks, in order of rank."""
        engine = engine_of_tensor(tensor)
        keep, longest = self.keep, max(self.keep)
        own, rank = engine.at_least_1d(tensor), group.rank
        if len(set(self.shapes)) > 1:
            # Lengths differ: only what is real goes out, filled up to the longest.
            if keep[rank]:
                own = engine.slice(own, 0, keep[rank])
            else:
                own = engine.empty((0, *self.rest), self.dtype, tensor)
            if keep[rank] < longest:
                own = engine.pad(own, 0, longest, 0, False)
            length = longest
        else:
            length = self.shapes[0][0]
        every = engine.all_gather(own, group)
        if all(n == length for n in keep):
            return every
        parts = [engine.slice(every, r * length, r * length + n) for r, n in enumerate(keep) if n]
        if not parts:
            return engine.slice(every, 0, 0)
        return parts[0] if len(parts) == 1 else engine.cat(parts)


# --- objects ------------------------------------------------------------------------------------


def _gather_objects(group: ProcessGroup, data: Any, kept: _Kept) -> list[Any]:
    """Gather what is no tensor: a list has an item per sample, anything else is one per batch."""
    data = _real_part(_by_rows(data), kept)
    if kept.valid == 0 and not isinstance(data, (list, tuple)):
        data = []  # nothing of this batch is real, and lists are joined
    elif not isinstance(data, (list, tuple)):
        data = [data]
    return gather_object_in(group, data)


def _by_rows(data: Any) -> Any:
    """Give a single tensor as the list of its rows, as gathering objects flattens one level."""
    if is_tensor(data) and engine_of_tensor(data).shape(data):
        return list(data)
    return data


def _real_part(data: Any, kept: _Kept) -> Any:
    """Cut lists and tensors, also inside others, to what is real."""
    if kept.valid is None:
        return data
    if is_tensor(data):
        engine = engine_of_tensor(data)
        shape = engine.shape(data)
        return engine.slice(data, 0, kept.of(shape[0])) if shape else data
    if isinstance(data, Mapping):
        done = {key: _real_part(value, kept) for key, value in data.items()}
        return done if type(data) is dict else type(data)(done)  # type: ignore[call-arg]
    if isinstance(data, (list, tuple)):
        # A list of as many items as samples is one per sample; a tuple of containers never is.
        per_sample = isinstance(data, list) and len(data) == kept.rows
        if per_sample or not any(_is_container(item) for item in data):
            return data[: kept.of(len(data))]
        return honor_type(data, [_real_part(item, kept) for item in data])
    return data


def _is_container(item: Any) -> bool:
    return is_tensor(item) or isinstance(item, (list, tuple, Mapping))
