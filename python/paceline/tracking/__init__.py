# SPDX-License-Identifier: Apache-2.0
"""Trackers: where the values that a run logs are kept.

Each works without an Accelerator; nothing here opens a file before ``start``.
"""

from __future__ import annotations

from .base import GeneralTracker, on_main_process
from .files import CSVTracker, JSONLTracker
from .registry import filter_trackers, get_available_trackers, register_tracker_class
from .tensorboard import TensorBoardTracker
from .wandb_tracker import WandBTracker

__all__ = [
    "CSVTracker",
    "GeneralTracker",
    "JSONLTracker",
    "TensorBoardTracker",
    "WandBTracker",
    "filter_trackers",
    "get_available_trackers",
    "on_main_process",
    "register_tracker_class",
]
