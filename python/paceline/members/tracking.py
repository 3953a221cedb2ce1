# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that record how a run goes, and end it."""

from __future__ import annotations

from .base import Members

__all__ = ["TrackingMembers"]


class TrackingMembers(Members):
    """Base of ``Accelerator``: trackers, and the end of the run."""

    def end_training(self) -> None:
        """Leave the process group."""
        self._partial.destroy_process_group()
