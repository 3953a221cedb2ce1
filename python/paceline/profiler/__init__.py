# SPDX-License-Identifier: Apache-2.0
"""Profiles: what each rank did when, as a picture and as tables.

``Accelerator.profile`` is the usual way in; ``Profiler`` works without it, on one process.
"""

from __future__ import annotations

from .record import Breakdown, Event, Record
from .schedule import Schedule, schedule
from .session import Profiler
from .table import Average, Averages

__all__ = [
    "Average",
    "Averages",
    "Breakdown",
    "Event",
    "Profiler",
    "Record",
    "Schedule",
    "schedule",
]
