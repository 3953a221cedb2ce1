# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while reading runs and drawing them."""

from __future__ import annotations

from ..errors import PacelineError

__all__ = ["PlotError"]


class PlotError(PacelineError, ValueError):
    """A run cannot be read, or does not hold what was asked for."""
