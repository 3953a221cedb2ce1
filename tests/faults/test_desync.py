# SPDX-License-Identifier: Apache-2.0
"""T3 of the reliability promises: ranks that do not make the same call are told so, with a table.

The differences of RELIABILITY 1c, each after 500 good collectives: all ranks raise, the text has a
line per rank with both call sites and the differing field first, and the memory is untouched.
"""

from __future__ import annotations

import pytest

import vcuda
from harness import run_ranks

BOUND_S = 5 * 0.2

HEAD = """
import time, warnings
import numpy as np
import paceline as pl
import paceline.distributed as dist
from paceline.distributed import ReduceOp
from rankside import ARGS, RANK, WORLD, failing, mark, out
warnings.simplefilter("error")

def ones(shape, dtype="float32"):
    made = np.full(shape, RANK + 1, dtype)
    if not ARGS.get("gpu"):
        return made
    return pl.tensor(made).to(f"cuda:{RANK}")
"""

# What differs, the call of rank 0, the call of the others, the word that comes first.
DIFFERENCES = [
    ("dtype", "dist.all_reduce(x(4))", "dist.all_reduce(x(4, 'int32'))", "dtype"),
    ("dtype size", "dist.all_reduce(x(4))", "dist.all_reduce(x(4, 'float64'))", "dtype"),
    ("reduce", "dist.all_reduce(x(6))", "dist.all_reduce(x(6), ReduceOp.MAX)", "reduce"),
    ("shape", "dist.all_reduce(x((2, 3)))", "dist.all_reduce(x((3, 2)))", "shape"),
    ("size", "dist.all_reduce(x(10))", "dist.all_reduce(x(7))", "count"),
    ("gather", "gather(10)", "gather(7)", "count"),
    ("op", "dist.all_reduce(x(4))", "dist.broadcast(x(4), 0)", "op"),
    ("root", "dist.broadcast(x(4), 0)", "dist.broadcast(x(4), 1)", "root"),
    ("large", "dist.all_reduce(x(4 << 20))", "dist.all_reduce(x(4 << 20), ReduceOp.MIN)", "reduce"),
    ("queued", "queued(5)", "queued(6)", "count"),
    ("gather root", "to(0)", "to(1)", "root"),
    ("gather shape", "to(0, (2, 3))", "to(0, (3, 2))", "shape"),
    ("scatter", "dealt(3)", "dealt(4)", "count"),
    ("scatter dtype", "dealt(3)", "dealt(3, 'int32')", "dtype"),
    ("exchange rows", "exchange((2, 3), [1, 1])", "exchange((2, 4), [1, 1])", "count"),
    ("exchange splits", "exchange((2, 3), [1, 1])", "exchange((2, 3), [0, 2])", "splits"),
    ("background", "dist.broadcast(x(5), 0, async_op=True).wait()", "to(0)", "op"),
]
# Those that are made with tensors on a GPU too, the virtual one.
ON_GPU = ("dtype", "shape", "root", "queued", "gather shape", "scatter dtype", "exchange splits")
HELPED = ("gather", "queued", "to", "dealt", "exchange")  # called by a helper of the script


@pytest.mark.parametrize(
    ("name", "first", "others", "field"), DIFFERENCES, ids=[d[0] for d in DIFFERENCES]
)
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_a_difference_raises_on_all_ranks(
    gpu: bool, name: str, first: str, others: str, field: str
) -> None:
    if gpu and name not in ON_GPU:
        pytest.skip("made on the CPU only")
    world = 3 if name in ("dtype", "root") else 2
    body = (
        HEAD
        + """
used = []
def x(*shape):
    used.append(ones(*shape))
    return used[-1]
def gather(n):
    dist.all_gather_into_tensor(x((WORLD, n)), x(n))
def queued(n):
    dist.all_reduce(x(n), async_op=True).wait()
def to(root, shape=5):
    dist.gather(x(shape), [x(shape) for _ in range(WORLD)] if RANK == root else None, dst=root)
def dealt(n, dtype="float32"):
    dist.scatter(x(n, dtype), [x(n, dtype) for _ in range(WORLD)] if RANK == 0 else None)
def exchange(shape, splits):
    dist.all_to_all_single(x(shape), x(shape), splits, splits)

dist.init_process_group()
warm = ones(8)
for _ in range(500):
    dist.all_reduce(warm, ReduceOp.AVG)
if ARGS["gpu"]:  # what a GPU has not finished when the group fails is worthless: docs/cuda.md
    pl.cuda.synchronize()
call = ARGS["first"] if RANK == 0 else ARGS["others"]
mark("going")
from rankside import report
try:
    exec(compile(call, f"line{min(RANK, 1)}.py", "exec"))
except Exception as error:
    report(error)
host = [a.cpu().numpy() for a in used] if ARGS["gpu"] else used
assert all((a == RANK + 1).all() for a in host), "memory was touched"
"""
    )
    results = run_ranks(
        world,
        body,
        args={"first": first, "others": others, "gpu": gpu},
        env=vcuda.variables(worker=True, devices=world) if gpu else None,
    )
    start = max(result.marks["going"] for result in results)
    for result in results:
        error = result.exception
        assert error["type"] == "CollectiveMismatchError", error
        assert error["at"] - start <= BOUND_S
        table = error["text"].splitlines()
        assert f"disagree on {field}" in table[0], error["text"]
        rows = [line for line in table if "rank=" in line]
        assert len(rows) == world, error["text"]
        for rank, row in enumerate(rows):
            assert f"rank={rank}, {field}=" in row.strip()
            if first.split("(")[0] not in HELPED and others.split("(")[0] not in HELPED:
                assert f"line{min(rank, 1)}.py:1" in row
            assert ".py:" in row
            assert "seq=" in row


def test_swapped_order_is_a_warning_with_both_call_sites() -> None:
    body = (
        HEAD
        + """
dist.init_process_group(strict_call_sites=ARGS["strict"])
a, b = ones(4), ones(4)
def swapped():
    if RANK == 0:
        dist.all_reduce(a)
        dist.all_reduce(b)
    else:
        dist.all_reduce(b)  # here
        dist.all_reduce(a)
from rankside import report
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        swapped()
    except Exception as error:
        report(error)
out([str(w.message) for w in caught])
"""
    )
    for result in run_ranks(2, body, args={"strict": False}):
        assert not result.exceptions
        (text,) = result.outs[0]
        assert text.count("script.py:") == 2
    for result in run_ranks(2, body, args={"strict": True}):
        assert result.exception["type"] == "CollectiveMismatchError"
        assert "call site" in result.exception["text"]


def test_one_call_more_on_one_rank_names_who_has_finished() -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
a = ones(4)
dist.all_reduce(a)
if RANK == 0:
    with failing():
        dist.all_reduce(a)
"""
    )
    error = run_ranks(2, body)[0].exception
    assert error["type"] == "PeerLostError"
    assert error["dead_ranks"] == [1]
    assert "rank 1 finished normally" in error["text"]


def test_a_timeout_names_the_missing_ranks() -> None:
    body = (
        HEAD
        + """
dist.init_process_group(timeout=0.5)
a = ones(4)
dist.all_reduce(a)
if RANK == 1:
    time.sleep(1.5)
with failing():
    dist.all_reduce(a)
"""
    )
    for result in run_ranks(3, body):
        error = result.exception
        assert error["type"] == "CollectiveTimeoutError"
        assert "TimeoutError" in error["kinds"]
        assert "missing ranks: 1" in error["text"]
        assert error["op"] == "all_reduce"


@pytest.mark.parametrize(
    ("first", "second", "tag"),
    [
        ("np.ones(3)", "np.ones(4)", 0),
        ("np.ones(4)", "np.ones(4, 'float32')", 0),
        ("np.ones(4)", "np.ones(4)", 1),
        ("np.ones((2, 3))", "np.ones((3, 2))", 0),
    ],
)
def test_send_and_recv_that_do_not_fit(first: str, second: str, tag: int) -> None:
    body = (
        HEAD
        + """
dist.init_process_group()
a = eval(ARGS["first"] if RANK == 0 else ARGS["second"])
with failing():
    if RANK == 0:
        dist.send(a, 1, tag=ARGS["tag"])
        dist.barrier()
    else:
        dist.recv(a, 0)
"""
    )
    for result in run_ranks(2, body, args={"first": first, "second": second, "tag": tag}):
        assert result.exception["type"] == "CollectiveMismatchError"
