# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that write and read files."""

from __future__ import annotations

from typing import Any

from ..engines import default_engine
from .base import Members

__all__ = ["CheckpointMembers"]


class CheckpointMembers(Members):
    """Base of ``Accelerator``: saving and loading."""

    def save(self, obj: Any, f: Any, safe_serialization: bool = False) -> None:
        """Save an object with ``paceline.save``, on the main process only.

        Parameters
        ----------
        obj : object
            A state dict, or anything else that ``paceline.save`` takes.
        f : path
            Where to.
        safe_serialization : bool
            Without effect: nothing is ever pickled.
        """
        if self._partial.is_main_process:
            default_engine().save(obj, f)
