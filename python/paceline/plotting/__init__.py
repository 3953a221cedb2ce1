# SPDX-License-Identifier: Apache-2.0
"""Reading what trackers wrote, and drawing it: what ``paceline plot`` does.

Only ``picture.py`` knows Matplotlib, and only it loads it.
"""

from __future__ import annotations

from .errors import PlotError
from .metrics import Panel, choose_panels
from .picture import draw
from .runs import Run, Series, find_runs

__all__ = ["Panel", "PlotError", "Run", "Series", "choose_panels", "draw", "find_runs"]
