# SPDX-License-Identifier: Apache-2.0
"""T6 of the reliability promises: signals reach a rank that waits, and a fork is not the rank."""

from __future__ import annotations

import signal
import time

import pytest

from harness import Break, Ranks, run_ranks

BOUND_S = 5 * 0.1

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import paceline.distributed as dist
from rankside import ARGS, RANK, WORLD, failing, mark, out, report
x = np.ones(1000, dtype="float32")
large = np.ones(4 << 20, dtype="float32")
"""

CALLS = {
    "all_reduce": "dist.all_reduce(x)",
    "large all_reduce": "dist.all_reduce(large)",
    "barrier": "dist.barrier()",
    "recv": "dist.recv(x, 1)",
    "broadcast": "dist.broadcast(x, 1)",
    "work.wait": "dist.all_reduce(x, async_op=True).wait()",
    "gather_object": "dist.gather_object(1, [0] * WORLD)",
    "backward": "backward()",
    "second group": "dist.ProcessGroup('second')",
}


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_in_a_call_that_waits(call: str) -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
dist.barrier()
if ARGS["call"] == "backward()":
    from paceline import Accelerator, nn, ones
    model = Accelerator().prepare(nn.Linear(512, 512))
    def backward():
        model(ones((4, 512))).sum().backward()
    backward()
if RANK == 1:
    time.sleep(60)
mark("going")
try:
    eval(ARGS["call"])
except KeyboardInterrupt as error:
    report(error)
mark("again")
try:
    dist.all_reduce(x)
except BaseException as error:
    report(error)
mark("done")
if ARGS["call"].startswith("dist.Proc"):
    sys.exit(0)  # the default group is whole, so there is nothing more to see
raise KeyboardInterrupt
"""
    )
    if call == "second group":
        # Only the forming of that group is interrupted; the default group is not touched.
        body = body.replace('mark("again")\ntry:\n    dist.all_reduce(x)', "try:\n    pass")
    with Ranks(2, body, args={"call": CALLS[call]}) as ranks:
        ranks.await_mark(0, "going")
        time.sleep(0.3)  # by now it waits
        at = ranks.hit(0, signal.SIGINT)
        ranks.wait(timeout=10, only=[0])
        rank = ranks.ranks[0]
        first = rank.exceptions[0]
        assert first["type"] == "KeyboardInterrupt"
        print(f"Ctrl-C in {call}: {(first['at'] - at) * 1e3:.0f} ms")
        assert first["at"] - at <= BOUND_S
        if call == "second group":
            assert rank.returncode == 0
            return
        # The group is broken and says so at once; the exit code is that of Ctrl-C.
        assert rank.exceptions[1]["at"] - rank.marks["again"] < 0.1
        assert "cannot be used any more" in rank.exceptions[1]["text"]
        assert rank.returncode == -signal.SIGINT


def test_ctrl_c_while_the_ranks_gather() -> None:
    body = (
        HEAD
        + """
if RANK == 1:
    time.sleep(60)
mark("going")
dist.init_process_group()
"""
    )
    with Ranks(2, body) as ranks:
        ranks.await_mark(0, "going")
        time.sleep(0.15)
        at = ranks.hit(0, signal.SIGINT)
        ranks.wait(timeout=10, only=[0])
        assert time.monotonic() - at < 2.0
        assert ranks.ranks[0].returncode == -signal.SIGINT


def test_peers_of_an_interrupted_rank_are_told() -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
dist.barrier()
if RANK == 2:
    time.sleep(0.4)
mark("going")
if RANK == 0:
    dist.all_reduce(x)
with failing():
    dist.all_reduce(x)
"""
    )
    results = run_ranks(
        3,
        body,
        breaks=[Break(0, "going", signal.SIGINT, delay_s=0.1)],
        expect={0: -signal.SIGINT},
    )
    for result in results[1:]:
        assert result.exception["type"] == "RemoteError"
        assert result.exception["rank"] == 0
        assert result.exception["remote_type"] == "KeyboardInterrupt"
    assert results[1].exception["at"] - results[0].broken_at <= 1.0


def test_a_signal_handler_runs_and_the_collective_goes_on() -> None:
    body = (
        HEAD
        + """
came = []
signal.signal(signal.SIGUSR1, lambda number, frame: came.append(time.monotonic()))
dist.init_process_group()
dist.barrier()
mark("going")
if RANK == 1:
    time.sleep(1.0)
dist.all_reduce(x)
out([came, float(x.sum())])
"""
    )
    results = run_ranks(2, body, breaks=[Break(0, "going", signal.SIGUSR1, delay_s=0.2)])
    (came, total) = results[0].outs[0]
    assert total == 2000.0
    assert len(came) == 1
    assert came[0] - results[0].broken_at <= BOUND_S
    assert came[0] < results[1].marks["going"] + 1.0  # before the peer came, not after


def test_a_storm_of_signals_changes_no_bit() -> None:
    body = (
        HEAD
        + """
import hashlib
count = 0
def handler(number, frame):
    global count
    count += 1
dist.init_process_group()
rng = np.random.default_rng(RANK)
signal.signal(signal.SIGALRM, handler)
if ARGS["storm"]:
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
digest = hashlib.sha256()
for turn in range(60):
    for size in (3, 1000, 300_000):
        y = rng.standard_normal(size).astype("float32")
        if turn % 3 == 0:
            dist.all_reduce(y, async_op=True).wait()
        else:
            dist.all_reduce(y)
        digest.update(y)
signal.setitimer(signal.ITIMER_REAL, 0)
out([digest.hexdigest(), count])
"""
    )
    quiet = run_ranks(2, body, args={"storm": False})
    storm = run_ranks(2, body, args={"storm": True})
    assert len({result.outs[0][0] for result in quiet + storm}) == 1
    assert all(result.outs[0][1] > 10 for result in storm)


def test_a_wait_outside_the_main_thread_leaves_ctrl_c_to_the_main_thread() -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
dist.barrier()
if RANK == 1:
    time.sleep(60)
ended = []
def wait():
    try:
        dist.barrier()
    except BaseException as error:
        ended.append(type(error).__name__)
thread = threading.Thread(target=wait, daemon=True)
thread.start()
mark("going")
try:
    # The interpreter is not held either: this counter runs while the other thread waits.
    ticks = 0
    while True:
        ticks += 1
        time.sleep(0.001)
except KeyboardInterrupt as error:
    report(error)
assert ticks > 20, ticks
os._exit(0)
"""
    )
    with Ranks(2, body) as ranks:
        ranks.await_mark(0, "going")
        time.sleep(0.3)
        at = ranks.hit(0, signal.SIGINT)
        ranks.wait(timeout=10, only=[0])
        assert ranks.ranks[0].exception["at"] - at <= BOUND_S
        assert ranks.ranks[0].returncode == 0


def test_a_forked_child_raises_and_its_end_is_nobody_s() -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
work = dist.all_reduce(x, dist.ReduceOp.AVG, async_op=True)
work.wait()
fds = len(os.listdir("/proc/self/fd"))
calls = [
    lambda: dist.all_reduce(x),
    lambda: dist.barrier(),
    lambda: dist.all_reduce(x, async_op=True),
    lambda: dist.all_gather_object([None] * WORLD, 1),
    lambda: dist.send(x, 1 - RANK),
]
for turn in range(20):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in calls:
                start = time.monotonic()
                try:
                    call()
                except RuntimeError as error:
                    assert f"belongs to process {os.getppid()}" in str(error), error
                    assert time.monotonic() - start < 0.1
                else:
                    raise AssertionError("a forked child took part")
            # No descriptor of the group is left in the child.
            links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                     if os.path.lexists(f"/proc/self/fd/{fd}")]
            assert not [l for l in links if "socket" in l or "pidfd" in l or "memfd" in l], links
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        if turn % 2:
            sys.exit(code)  # runs the exit handlers that it inherited
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for _ in range(5):
        dist.all_reduce(x, dist.ReduceOp.AVG)
assert float(x.sum()) == 1000.0
assert len(os.listdir("/proc/self/fd")) == fds
"""
    )
    for result in run_ranks(2, body):
        assert not result.stderr


def test_a_forked_child_may_make_a_group_of_its_own() -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
pid = os.fork()
if pid == 0:
    y = np.ones(3)
    dist.init_process_group(world_size=1, rank=0)
    dist.all_reduce(y)
    dist.destroy_process_group()
    os._exit(0 if y.sum() == 3.0 else 1)
_, status = os.waitpid(pid, 0)
assert status == 0
dist.all_reduce(x)
"""
    )
    for result in run_ranks(2, body):
        assert not result.stderr


def test_forked_workers_of_multiprocessing_are_fine() -> None:
    body = (
        HEAD
        + """
import multiprocessing
def square(n):
    return n * n
dist.init_process_group()
with multiprocessing.get_context("fork").Pool(2) as pool:
    for _ in range(5):
        dist.all_reduce(x, dist.ReduceOp.AVG)
        assert pool.map(square, range(10)) == [n * n for n in range(10)]
dist.all_reduce(x)
"""
    )
    run_ranks(2, body)
