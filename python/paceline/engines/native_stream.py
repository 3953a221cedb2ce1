# SPDX-License-Identifier: Apache-2.0
"""A stream in the shape that paceline's DataLoader expects; at top level, so that it pickles."""

from __future__ import annotations

from typing import Any

from ..utils.data.dataset import IterableDataset
from .alike import AlikeStream

__all__ = ["Stream"]


class Stream(AlikeStream, IterableDataset[Any]):
    """Another iterable as a stream; at top level, so that it pickles."""
