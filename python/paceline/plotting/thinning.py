# SPDX-License-Identifier: Apache-2.0
"""Long lines: their running mean, and as few points as show the same picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["every", "extremes", "running_mean"]


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Give the mean of the numbers up to `reach` before and after each, but those not finite.

    Parameters
    ----------
    values : sequence of float
        The numbers.
    reach : int
        How far to look on each side; less far towards the ends, down to a quarter.
    """
    finite = [math.isfinite(value) for value in values]
    sums = [0.0, *accumulate(v if ok else 0.0 for v, ok in zip(values, finite, strict=True))]
    counts = [0, *accumulate(map(int, finite))]
    means = []
    for at in range(len(values)):
        # Alike on both sides, so that the ends of a falling line are not pulled to its middle; but
        # never so few that a single number stands for the rest.
        own = max(min(reach, at, len(values) - 1 - at), reach // 4)
        low, high = max(0, at - own), min(len(values), at + own + 1)
        count = counts[high] - counts[low]
        means.append((sums[high] - sums[low]) / count if count else math.nan)
    return means


def every(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Give points at even distances, the last among them; for lines that are smooth."""
    stride = max(1, -(-len(x) // most))
    at = [*range(0, len(x) - 1, stride), len(x) - 1]
    return [x[i] for i in at], [y[i] for i in at]


def extremes(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Give the least and the greatest point of each stretch; for lines that are rough."""
    stride = max(1, -(-2 * len(x) // most))
    if stride < 3:
        return list(x), list(y)
    at: list[int] = []
    for start in range(0, len(x), stride):
        stretch = [i for i in range(start, min(start + stride, len(x))) if math.isfinite(y[i])]
        if stretch:
            at += sorted({min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)})
        else:
            at.append(start)
    return [x[i] for i in at], [y[i] for i in at]
