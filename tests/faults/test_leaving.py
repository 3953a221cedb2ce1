# SPDX-License-Identifier: Apache-2.0
"""How a job ends: with code 0 and in silence, whatever is left open, and without a trace.

A9 and D1 of the reliability promises. What the launcher adds (T5) is tested in ``tests/cli``.
"""

from __future__ import annotations

import random
import signal
import time

import pytest

from harness import Ranks, names, run_ranks, tagged

HEAD = """
import os, sys, time
import numpy as np
import paceline.distributed as dist
from paceline import _C
from rankside import ARGS, RANK, WORLD, mark, out
"""

ENDINGS = {
    "nothing is closed": "",
    "closed by name": "dist.destroy_process_group()",
    "two groups": "other = dist.ProcessGroup('other'); other.barrier()",
    "work not waited for": "dist.all_reduce(np.ones(1000), async_op=True)",
    "held by a cycle": "class C: pass\nc = C(); c.me = c; c.group = dist.default_group()",
    "sys.exit(0)": "dist.barrier(); sys.exit(0)",
    "rank 1 much later": "dist.barrier(); time.sleep(0.3 * RANK)",
    "daemon thread": (
        "import threading\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_normal_end_is_code_0_and_silence(ending: str) -> None:
    body = HEAD + "dist.init_process_group()\ndist.all_reduce(np.ones(10))\n" + ENDINGS[ending]
    for result in run_ranks(2, body):
        assert (result.stdout, result.stderr) == ("", "")


def test_coming_and_going_leaves_no_descriptor_and_no_thread() -> None:
    body = (
        HEAD
        + """
def state():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
for turn in range(12):
    dist.init_process_group()
    dist.all_reduce(np.ones(100_000))
    dist.all_reduce(np.ones(10), async_op=True).wait()
    dist.barrier()
    dist.destroy_process_group()
    if turn == 1:
        first = state()
assert state() == first, (first, state())
live = _C.live_objects()
assert live["group"] == live["work"] == live["segment"] == 0, live
"""
    )
    run_ranks(2, body)


@pytest.mark.parametrize("seed", range(3))
def test_killing_all_ranks_leaves_nothing_behind(seed: int) -> None:
    body = (
        HEAD
        + """
mark("begun")
dist.init_process_group()
segment = np.ones(1 << 20)
while True:
    dist.all_reduce(segment, dist.ReduceOp.AVG)
"""
    )
    draw = random.Random(seed)
    before = names()
    with Ranks(3, body) as ranks:
        ranks.await_mark(0, "begun")
        time.sleep(draw.uniform(0.0, 0.4))
        assert len(tagged(ranks.tag)) == 3
        for rank in draw.sample(range(3), 3):
            ranks.hit(rank, signal.SIGKILL)
        ranks.wait(timeout=5)
        assert tagged(ranks.tag) == []
        assert not [name for name in names() - before if "paceline" in name]


def test_an_uncaught_exception_shows_its_traceback_once_and_keeps_its_code() -> None:
    body = HEAD + "dist.init_process_group()\ndist.barrier()\nraise ValueError('mine')\n"
    for result in run_ranks(2, body, expect={0: 1, 1: 1}):
        assert result.stderr.count("ValueError: mine") == 1
        assert result.stderr.count("Traceback") == 1


def test_a_hook_that_replaces_ours_does_not_hide_the_exception() -> None:
    body = (
        HEAD
        + """
from rankside import failing
dist.init_process_group()
sys.excepthook = lambda *exception: None
if RANK == 1:
    raise KeyError("x")
with failing():
    dist.barrier()
"""
    )
    error = run_ranks(2, body, expect={1: 1})[0].exception
    assert (error["type"], error["remote_type"]) == ("RemoteError", "KeyError")


def test_a_user_s_own_excepthook_still_runs() -> None:
    body = (
        HEAD
        + """
sys.excepthook = lambda kind, error, tb: print("OUT", '"' + kind.__name__ + '"', flush=True)
dist.init_process_group()
raise KeyError("x")
"""
    )
    for result in run_ranks(2, body, expect={0: 1, 1: 1}):
        assert result.outs == ["KeyError"]
