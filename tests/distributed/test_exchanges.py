# SPDX-License-Identifier: Apache-2.0
"""gather, scatter, all_to_all, batches of messages, and collectives that run in the background."""

from __future__ import annotations

import pytest

from bad_calls import check_bad_calls
from harness import run_ranks

HEAD = """
import numpy as np
import paceline as pl
import paceline.distributed as dist
from paceline.distributed import ReduceOp
from rankside import ARGS, RANK, WORLD, failing, mark, out

DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8"]
SIZES = [0, 1, 7, 1000, 65537]

def data(rank, size, dtype="float32"):
    rng = np.random.default_rng([rank, size])
    return rng.integers(0, 50, size).astype(dtype)

dist.init_process_group()
LAST = WORLD - 1
"""


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_gather_scatter_all_to_all(world: int) -> None:
    body = (
        HEAD
        + """
for dtype in DTYPES:
    for size in SIZES:
        parts = [data(r, size, dtype) for r in range(WORLD)]
        rows = [np.full(size, 99, dtype) for _ in range(WORLD)] if RANK == LAST else None
        assert dist.gather(parts[RANK], rows, dst=LAST) is None
        assert rows is None or all(np.array_equal(a, b) for a, b in zip(rows, parts))

        mine = np.empty(size, dtype)
        dist.scatter(mine, parts if RANK == LAST else None, src=LAST)
        assert np.array_equal(mine, parts[RANK])

        whole = np.concatenate([(parts[RANK] + i).astype(dtype) for i in range(WORLD)])
        got = np.empty_like(whole)
        dist.all_to_all_single(got, whole)
        wanted = np.concatenate([parts[i] + RANK for i in range(WORLD)])
        assert np.array_equal(got, wanted.astype(dtype))

# Rank i sends i + j rows of three to rank j.
sent = np.repeat(np.arange(WORLD), [RANK + j for j in range(WORLD)])
rows = np.stack([sent, np.full_like(sent, RANK), sent], axis=1)
got = np.empty((sum(RANK + i for i in range(WORLD)), 3), rows.dtype)
sizes = [RANK + i for i in range(WORLD)]
dist.all_to_all_single(got, rows, output_split_sizes=sizes, input_split_sizes=sizes)
assert got[:, 1].tolist() == np.repeat(np.arange(WORLD), sizes).tolist()
assert (got[:, 0] == RANK).all()

# Lists of tensors of any shape.
source = [pl.full((j + 1, 2), RANK) for j in range(WORLD)]
target = [pl.zeros((RANK + 1, 2), dtype=pl.int64) for _ in range(WORLD)]
dist.all_to_all(target, source)
assert [t.tolist() for t in target] == [[[i, i]] * (RANK + 1) for i in range(WORLD)]
column = pl.zeros((4, 2))[:, 0]
dist.scatter(column, [pl.full((4,), float(r)) for r in range(WORLD)] if RANK == 0 else None)
assert column.tolist() == [float(RANK)] * 4
"""
    )
    run_ranks(world, body, timeout=60)


def test_objects_are_scattered() -> None:
    body = (
        HEAD
        + """
box = [None, "kept"]
objects = [{"rank": r, "blob": b"x" * (r * 9999)} for r in range(WORLD)] if RANK == 1 else None
dist.scatter_object_list(box, objects, src=1)
assert box[0]["rank"] == RANK and len(box[0]["blob"]) == RANK * 9999 and box[1] == "kept"
from paceline.errors import RemoteError
try:
    dist.scatter_object_list(box, [1, lambda: 0, 3] if RANK == 0 else None)
except RemoteError as error:
    assert RANK != 0 and "pickle" in str(error)
except Exception as error:
    assert RANK == 0 and "pickle" in str(error).lower()
else:
    raise AssertionError("nothing was raised")
dist.barrier()
"""
    )
    run_ranks(3, body)


def test_every_collective_in_the_background() -> None:
    body = (
        HEAD
        + """
n = 40_000
parts = [data(r, n) for r in range(WORLD)]
total = np.empty_like(parts[0])
a, b, c = parts[RANK].copy(), parts[RANK].copy(), np.empty((WORLD, n), "float32")
d, e, f = [np.empty(n, "float32") for _ in range(WORLD)], np.empty(n, "float32"), None
works = [
    dist.broadcast(a, 1, async_op=True),
    dist.reduce(b, 1, async_op=True),
    dist.all_gather_into_tensor(c, parts[RANK], async_op=True),
    dist.all_gather(d, parts[RANK], async_op=True),
    dist.scatter(e, parts if RANK == 0 else None, async_op=True),
]
if RANK == 0:
    f = [np.empty(n, "float32") for _ in range(WORLD)]
works.append(dist.gather(parts[RANK], f, async_op=True))
whole = np.concatenate([parts[RANK]] * WORLD)
g = np.empty(n, "float32")
works.append(dist.reduce_scatter_tensor(g, whole, ReduceOp.MAX, async_op=True))
h = pl.zeros((n,), dtype=pl.float32)[::1]
works.append(dist.all_reduce(h, async_op=True))
assert all(isinstance(work, dist.Work) for work in works)
assert all(work.wait() and work.is_completed() for work in works)
assert np.array_equal(a, parts[1])
assert np.array_equal(b, parts[0] + parts[1] if RANK == 1 else parts[RANK])
assert np.array_equal(c, np.stack(parts)) and all(map(np.array_equal, d, parts))
assert np.array_equal(e, parts[RANK]) and np.array_equal(g, np.maximum(*parts))
assert f is None or all(map(np.array_equal, f, parts))
assert isinstance(dist.barrier(async_op=True), dist.Work)
"""
    )
    run_ranks(2, body)


def test_a_batch_of_messages_in_any_order() -> None:
    body = (
        HEAD
        + """
# A ring, both ways at once, of messages that need their receiver (longer than a mailbox).
right, left = (RANK + 1) % WORLD, (RANK - 1) % WORLD
mine = data(RANK, 300_000)
from_left, from_right = np.empty_like(mine), np.empty_like(mine)
ops = [
    dist.P2POp(dist.isend, mine, right),
    dist.P2POp(dist.isend, mine, left, tag=3),
    dist.P2POp(dist.irecv, from_left, left),
    dist.P2POp(dist.irecv, from_right, right, tag=3),
]
for work in dist.batch_isend_irecv(ops if RANK % 2 else ops[::-1]):
    assert work.wait()
assert np.array_equal(from_left, data(left, 300_000))
assert np.array_equal(from_right, data(right, 300_000))
"""
    )
    run_ranks(3, body)


BAD_CALLS = [
    ("dist.gather(np.ones(1), None, dst=RANK)", "ValueError", "gather_list is needed on rank dst"),
    ("dist.gather(np.ones(1), [np.ones(1)], dst=1 - RANK)", "ValueError", "only rank dst passes"),
    ("dist.gather(np.ones(1), [np.ones(1)], dst=RANK)", "ValueError", "got 1, expected 2"),
    ("dist.scatter(np.ones(1), None, src=RANK)", "ValueError", "scatter_list is needed"),
    ("dist.scatter(np.ones(1), [1], src=1 - RANK)", "ValueError", "only rank src passes"),
    ("dist.scatter(np.ones(1), None, src=9)", "ValueError", "got 9, expected one of 0, 1"),
    ("dist.broadcast(np.ones(1), group_src=2)", "ValueError", "group_src is outside the group"),
    ("dist.broadcast(np.ones(1), 0, group_src=0)", "ValueError", "not both"),
    ("dist.all_to_all_single(np.ones(3), np.ones(3))", "ValueError", "cannot be split equally"),
    ("dist.all_to_all_single(np.ones(2), np.ones(2), [1, 2])", "ValueError", "sum to 2"),
    ("dist.all_to_all_single(np.ones(2), np.ones(4), [1, 1], [5, -1])", "ValueError", "negative"),
    ("dist.all_to_all_single(np.ones((2, 2)), np.ones(2))", "ValueError", "do not fit"),
    ("dist.all_to_all_single(np.ones(()), np.ones(2))", "ValueError", "first dimension"),
    ("dist.all_to_all([np.ones(1)], [np.ones(1)] * 2)", "ValueError", "got 1, expected 2"),
    ("dist.all_to_all([[1]] * 2, [np.ones(1)] * 2)", "TypeError", "one dtype"),
    ("dist.scatter_object_list([], [1, 2])", "ValueError", "at least one entry"),
    ("dist.scatter_object_list([0], [1], src=RANK)", "ValueError", "got 1, expected 2"),
    ("dist.scatter_object_list([0], None, src=RANK)", "ValueError", "an input list is needed"),
    ("dist.isend(np.ones(1), 0)", "NotImplementedError", "[isend]"),
    ("dist.irecv(np.ones(1), 0)", "NotImplementedError", "[irecv]"),
    ("dist.P2POp(dist.send, np.ones(1), 0)", "ValueError", "isend or irecv"),
    ("dist.batch_isend_irecv([])", "ValueError", "one entry or more"),
    ("dist.send(np.ones(1))", "ValueError", "dst is needed"),
]


def test_bad_arguments_raise_at_once_and_the_group_stays_whole() -> None:
    check_bad_calls(BAD_CALLS)
