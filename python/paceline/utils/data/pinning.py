# SPDX-License-Identifier: Apache-2.0
"""Batches in page-locked memory, from which copies to the GPU need not wait. Knows no loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from paceline import _C
from paceline._placing import pinned


def pin(batch: Any) -> Any:
    """Give a batch with its tensors in pinned memory: copies, but of those that are there already.

    Mappings, lists and tuples keep their type; an object with a method ``pin_memory`` is asked.
    """
    if isinstance(batch, _C.Tensor):
        return pinned(batch)
    if isinstance(batch, (str, bytes)):
        return batch
    if isinstance(batch, Mapping):
        done = {key: pin(value) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return done
        return type(batch)(done)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(pin, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(pin, batch))
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


def pin_all(batches: Iterable[Any]) -> Iterator[Any]:
    """Pin each batch at its turn; the iterator goes on after an exception, as `batches` does."""
    return map(pin, batches)
