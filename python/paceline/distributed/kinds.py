# SPDX-License-Identifier: Apache-2.0
"""Numbers that the core has names for: the kinds of collectives and the reductions."""

from __future__ import annotations

import enum


class Kind(enum.IntEnum):
    """``pl_coll`` of csrc/comm/comm.h."""

    ALL_REDUCE = 0
    REDUCE = 1
    REDUCE_SCATTER = 2
    ALL_GATHER = 3
    BROADCAST = 4
    GATHER = 5
    SCATTER = 6


class ReduceOp(enum.IntEnum):
    """What an all-reduce computes. AVG is the mean over the ranks."""

    SUM = 0
    AVG = 1
    MAX = 2
    MIN = 3
