# SPDX-License-Identifier: Apache-2.0
"""A stream in the shape that paceline's DataLoader expects; at top level, so that it pickles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..utils.data.dataset import IterableDataset

__all__ = ["Stream"]


class Stream(IterableDataset[Any]):
    """Reads another iterable.

    Parameters
    ----------
    samples : iterable
        What is read.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)
