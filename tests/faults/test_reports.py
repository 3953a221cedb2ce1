# SPDX-License-Identifier: Apache-2.0
"""A2 and A3: who keeps the others waiting is said while they wait, by whoever can say it."""

from __future__ import annotations

import signal

import pytest

from harness import Ranks, run_ranks

BODY = """
import time
import numpy as np
import paceline.distributed as dist
from rankside import RANK, WORLD, failing, mark
dist.init_process_group()
x = np.ones(4)
dist.barrier()  # line 8
mark("going")
if RANK == {sleeper}:
    time.sleep({sleep})
"""
TIMES = {
    "PACELINE_REPORT_AFTER": "0.6",
    "PACELINE_SUSPECT_AFTER": "1",
    "PACELINE_FROZEN_AFTER": "0",
}


def test_a_late_rank_is_in_a_table_with_its_line() -> None:
    body = BODY.format(sleeper=1, sleep=1.5) + "dist.all_reduce(x)  # line 12\n"
    results = run_ranks(3, body, env=TIMES)
    lines = results[0].stderr.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("paceline: group ")]
    assert 1 <= len(heads) <= 3, results[0].stderr  # one per interval, not one per look
    first, *rest = lines[heads[0] + 1 : heads[0] + 4]
    assert "rank 1: late, alive, elsewhere" in first
    assert "last seen in barrier seq" in first
    assert "script.py:8" in first
    assert all("waits since" in line and "all_reduce" in line for line in rest)
    assert not results[1].stderr
    assert not results[2].stderr


def test_nobody_is_reported_while_all_compute() -> None:
    body = BODY.format(sleeper="RANK", sleep=1.5) + "dist.all_reduce(x)\n"
    assert not any(result.stderr for result in run_ranks(2, body, env=TIMES))


@pytest.mark.parametrize("frozen", [1, 0])
def test_a_frozen_rank_is_suspected_and_then_an_error(frozen: int) -> None:
    body = (
        BODY.format(sleeper=-1, sleep=0)
        + """
with failing():
    while True:
        dist.all_reduce(x)
        time.sleep(0.01)
"""
    )
    env = {**TIMES, "PACELINE_REPORT_AFTER": "0", "PACELINE_FROZEN_AFTER": "3"}
    with Ranks(3, body, env=env) as ranks:
        for rank in range(3):
            ranks.await_mark(rank, "going")
        at = ranks.hit(frozen, signal.SIGSTOP)
        alive = [rank for rank in range(3) if rank != frozen]
        ranks.wait(20, only=alive)
        ranks.hit(frozen, signal.SIGCONT)
        ranks.wait(20)
        for rank in range(3):
            error = ranks.ranks[rank].exception
            assert error["type"] == "PeerLostError"
            assert error["dead_ranks"] == [frozen]
            assert f"rank {frozen} is frozen: no heartbeat for 3 s" in error["text"]
            assert rank == frozen or error["at"] - at <= 3 + 5 * 0.5
        reporter = ranks.ranks[alive[0]].stderr
        assert f"paceline: rank {frozen} is frozen: no heartbeat for" in reporter
        assert not ranks.ranks[alive[1]].stderr
