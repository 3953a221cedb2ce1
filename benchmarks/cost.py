# SPDX-License-Identifier: Apache-2.0
"""The cost model of docs/scaling.md: seconds of an all-reduce and of a step for N ranks.

Pure arithmetic: what is measured comes in as numbers. alpha is the time until what one rank posts
is seen by another, which posts at the same time; beta the bytes per second after that (Hockney,
Parallel Computing 20(3), 1994; for collectives Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005).
The pieces and phases are those of csrc/comm/staged.c and bucket.c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

PIECE = 256 << 10  # bytes that go through the staging area at once
FAR_PIECE = 192 << 10  # between two machines
FIRST_BUCKET = 1 << 20
BUCKET = 25 << 20
NEAR_BUCKET = 2 << 20  # where all ranks are on one machine
NEAR_BUCKETS = 512
ONE_BUCKET = 4 << 20


@dataclass(frozen=True)
class Link:
    """One rank's link to the others: `alpha` seconds, `beta` bytes per second."""

    alpha: float
    beta: float


def fit(points: list[tuple[float, float]]) -> Link:
    """Least squares of seconds = 2 alpha + bytes / beta, every point weighed by its own size.

    Points are all-reduces of one piece between two ranks: a meeting, and one exchange.
    """
    weights = [1 / t**2 for _, t in points]
    total = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
    mean_t = sum(w * t for w, (_, t) in zip(weights, points, strict=True)) / total
    over = sum(w * (n - mean_n) * (t - mean_t) for w, (n, t) in zip(weights, points, strict=True))
    under = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    slope = max(over / under, 1e-15)
    return Link(max(mean_t - slope * mean_n, 0.0) / 2, 1 / slope)


def network_all_reduce(ranks: int, nbytes: float, link: Link) -> float:
    """Seconds of a reduction between machines of one rank each, through staging areas.

    A meeting first. Two ranks show each other whole pieces and both fold; one piece is always under
    way, so two cross the link in the time of an exchange, or the link is full. More send every
    owner its slice, fold, and send the results back: two exchanges, each of (N - 1) / N.
    """
    piece = FAR_PIECE if ranks == 2 else PIECE
    seconds, left = link.alpha, nbytes
    while left > 0:
        size, left = min(left, piece), left - piece
        carried = size / link.beta
        if ranks > 2:
            seconds += 2 * (link.alpha + (ranks - 1) / ranks * carried)
        elif left > 0:
            seconds += max(carried, (link.alpha + carried) / 2)
        else:
            seconds += link.alpha + carried
    return seconds


def shared_bucket(ranks: int, cores: int, nbytes: float, measured: dict[int, float]) -> float:
    """Seconds of a bucket in shared memory, from those of two ranks by size.

    Every rank reads its slice of all buckets and writes it into all: n bytes each, whatever N. So
    it takes as long as for two while each rank has a core, and longer as ranks share cores.
    """
    return interpolated(measured, nbytes) * max(ranks / cores, 1.0) / max(2 / cores, 1.0)


def interpolated(points: dict[int, float], nbytes: float) -> float:
    """Seconds for a size between measured ones, on a straight line of both logarithms."""
    sizes = sorted(points)
    if nbytes <= sizes[0]:
        return points[sizes[0]]
    for low, high in pairwise(sizes):
        if nbytes <= high or high == sizes[-1]:
            slope = math.log(points[high] / points[low]) / math.log(high / low)
            return points[low] * float((nbytes / low) ** slope)
    return points[sizes[0]]


def buckets(sizes: list[int], near: bool) -> list[int]:
    """Bytes of each bucket, from the gradients' bytes in order of registration (ddp/layout.c)."""
    total, filled = sum(sizes), [0]
    most = BUCKET
    if near and total > ONE_BUCKET:
        most = min(BUCKET, max(NEAR_BUCKET, total // NEAR_BUCKETS))
    for nbytes in reversed(sizes):
        first = len(filled) == 1 and total > ONE_BUCKET
        if filled[-1] and filled[-1] + nbytes > (FIRST_BUCKET if first else most):
            filled.append(0)
        filled[-1] += nbytes
    return filled


@dataclass(frozen=True)
class Step:
    """One rank's step without communication, seconds."""

    forward: float
    backward: float
    update: float


def step_seconds(step: Step, sizes: list[int], wire: list[float], busy: list[float]) -> float:
    """Seconds of a step whose buckets take `wire` seconds each, `busy` of them computing.

    A bucket is full when the backward pass has done as large a share of its work as the bucket
    ends at (work is taken to be in proportion to parameters); it is reduced once those before it
    are. What is computed for that takes the time from the backward pass, for no core is spare;
    waiting does not. The last bucket is reduced after the pass.
    """
    total, at, end, stolen = sum(sizes), 0, 0.0, 0.0
    for nbytes, seconds, used in zip(sizes, wire, busy, strict=True):
        at += nbytes
        full = step.backward * at / total + stolen
        end = max(end, full) + seconds
        stolen += min(used, seconds) if at < total else 0.0
    # The last bucket began no earlier than the end of the pass.
    return step.forward + end + step.update
