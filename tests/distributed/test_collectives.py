# SPDX-License-Identifier: Apache-2.0
"""Each collective against NumPy, over dtypes, sizes and worlds; and the same bits on all ranks."""

from __future__ import annotations

import pytest

from bad_calls import check_bad_calls
from harness import run_ranks

HEAD = """
import hashlib
import numpy as np
import paceline.distributed as dist
from paceline.distributed import ReduceOp
from rankside import ARGS, RANK, WORLD, failing, mark, out

DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8"]
SIZES = [0, 1, 7, 1000, 65537]

def data(rank, size, dtype, seed=0):
    # Every rank can make every rank's input, and so the expected result.
    rng = np.random.default_rng([seed, rank, size])
    if dtype.startswith("float"):
        return rng.standard_normal(size).astype(dtype)
    return rng.integers(0, 50, size).astype(dtype)

def tree(parts):
    # The order of the sum that the design promises: lower block of ranks first.
    if len(parts) == 1:
        return parts[0]
    half = 1 << (len(parts) - 1).bit_length() - 1
    return tree(parts[:half]) + tree(parts[half:])

def summed(size, dtype, seed=0):
    parts = [data(r, size, dtype, seed) for r in range(WORLD)]
    if dtype == "float16":
        parts = [p.astype("float32") for p in parts]
    return tree(parts).astype(dtype)

def bits(*arrays):
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()

dist.init_process_group()
"""


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_values_and_bits(world: int) -> None:
    body = (
        HEAD
        + """
found = []
for dtype in DTYPES:
    for size in SIZES:
        parts = [data(r, size, dtype) for r in range(WORLD)]
        x = data(RANK, size, dtype)
        dist.all_reduce(x)
        assert np.array_equal(x, summed(size, dtype)), (dtype, size)
        found.append(x)

        for op, expected in ((ReduceOp.MAX, np.maximum), (ReduceOp.MIN, np.minimum)):
            x = data(RANK, size, dtype)
            dist.all_reduce(x, op)
            assert np.array_equal(x, expected.reduce(parts)), (dtype, size, op)

        if dtype.startswith("float"):
            x = data(RANK, size, dtype)
            dist.all_reduce(x, op=ReduceOp.AVG)
            wanted = np.mean([p.astype("float64") for p in parts], axis=0)
            # One rounding of each of world - 1 sums and one of the division, each half an ulp.
            bound = WORLD * np.finfo(dtype).eps * np.sum(np.abs(parts), axis=0, dtype="float64")
            assert not np.any(~(np.abs(x - wanted) <= bound)), (dtype, size)
            found.append(x)

        x = data(RANK, size, dtype)
        dist.reduce(x, WORLD - 1)
        wanted = summed(size, dtype) if RANK == WORLD - 1 else data(RANK, size, dtype)
        assert np.array_equal(x, wanted)

        x = data(RANK, size, dtype)
        dist.broadcast(x, WORLD - 1)
        assert np.array_equal(x, parts[WORLD - 1])

        gathered = np.empty((WORLD, size), dtype)
        dist.all_gather_into_tensor(gathered, data(RANK, size, dtype))
        assert np.array_equal(gathered, np.stack(parts))

        big = data(RANK, WORLD * size, dtype)
        part = np.empty(size, dtype)
        dist.reduce_scatter_tensor(part, big)
        assert np.array_equal(part, summed(WORLD * size, dtype)[RANK * size : (RANK + 1) * size])
out(bits(*found))
"""
    )
    results = run_ranks(world, body, timeout=60)
    assert len({result.outs[0] for result in results}) == 1


@pytest.mark.parametrize("world", [2, 3])
def test_special_floats_have_the_same_bits_everywhere(world: int) -> None:
    body = (
        HEAD
        + """
found = []
for dtype in ("float64", "float32", "float16"):
    rng = np.random.default_rng(RANK)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8, 6e4], dtype)
    x = special[rng.integers(0, len(special), 5000)]
    dist.all_reduce(x)
    found.append(x)
out(bits(*found))
"""
    )
    results = run_ranks(world, body)
    assert len({result.outs[0] for result in results}) == 1


def test_sum_does_not_depend_on_how_it_is_cut() -> None:
    body = (
        HEAD
        + """
whole = data(RANK, 300_000, "float32")
dist.all_reduce(whole)
cut = data(RANK, 300_000, "float32")
begin = 0
for size in (1, 6, 1000, 65536, 100_000, 133_457):
    dist.all_reduce(cut[begin : begin + size])
    begin += size
assert begin == 300_000
assert np.array_equal(whole.view("uint32"), cut.view("uint32"))
works = []
queued = data(RANK, 300_000, "float32")
for begin in range(0, 300_000, 50_000):
    works.append(dist.all_reduce(queued[begin : begin + 50_000], async_op=True))
for work in works:
    assert work.wait()
    assert work.is_completed()
assert np.array_equal(whole.view("uint32"), queued.view("uint32"))
"""
    )
    run_ranks(3, body)


def test_tensors_of_every_dtype() -> None:
    body = (
        HEAD
        + """
import paceline as pl
for dtype in (pl.float64, pl.float32, pl.bfloat16, pl.float16, pl.int64, pl.int32, pl.uint8):
    x = pl.full((3, 5), RANK + 1, dtype=dtype)
    dist.all_reduce(x)
    assert x.dtype == dtype
    assert x.tolist() == [[6] * 5] * 3
    rows = [pl.zeros((2, 2), dtype=dtype) for _ in range(WORLD)]
    dist.all_gather(rows, pl.full((2, 2), RANK, dtype=dtype))
    assert [row.tolist() for row in rows] == [[[r, r], [r, r]] for r in range(WORLD)]
    mine = pl.zeros((2,), dtype=dtype)
    dist.reduce_scatter(mine, [pl.full((2,), r, dtype=dtype) for r in range(WORLD)])
    assert mine.tolist() == [3 * RANK] * 2
# Not contiguous: packed, and copied back.
square = pl.arange(16, dtype=pl.float32).reshape(4, 4)
column = square[:, 1]
dist.all_reduce(column)
assert square[:, 1].tolist() == [3.0, 15.0, 27.0, 39.0]
assert square[:, 0].tolist() == [0.0, 4.0, 8.0, 12.0]
work = dist.all_reduce(square.t(), async_op=True)
work.wait()
assert square[1, 0].item() == 12.0
# A parameter needs no no_grad: the graph does not see a collective.
leaf = pl.ones((4,), requires_grad=True)
dist.all_reduce(leaf)
assert leaf.requires_grad and leaf.tolist() == [3.0] * 4
"""
    )
    run_ranks(3, body)


def test_other_memory() -> None:
    body = (
        HEAD
        + """
from array import array
a = array("d", [1.0, 2.0])
dist.all_reduce(a)
assert a.tolist() == [2.0, 4.0]
b = bytearray(b"abc" if RANK == 0 else b"xyz")
dist.broadcast(b, 0)
assert b == b"abc"
strided = np.arange(10, dtype="float32")[::2]
dist.all_reduce(strided)
assert strided.tolist() == [0.0, 4.0, 8.0, 12.0, 16.0]
fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
dist.all_reduce(fortran)
assert fortran.tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
m = memoryview(np.ones(4, dtype="int32"))
dist.all_reduce(m)
assert m.tolist() == [2, 2, 2, 2]
"""
    )
    run_ranks(2, body)


def test_send_and_recv() -> None:
    body = (
        HEAD
        + """
for size in (0, 1, 1000, 200_000):
    mine = data(RANK, size, "float32")
    got = np.empty_like(mine)
    right, left = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    if RANK % 2 == 0:
        dist.send(mine, right)
        assert dist.recv(got, left) == left
    else:
        dist.recv(got, left)
        dist.send(mine, right)
    assert np.array_equal(got, data(left, size, "float32"))
if RANK == 0:
    dist.send(np.array([1.0]), 1, tag=1)
    dist.send(np.array([2.0]), 1, tag=2)
elif RANK == 1:
    a, b = np.zeros(1), np.zeros(1)
    dist.recv(a, 0, tag=1)
    dist.recv(b, 0, tag=2)
    assert (a[0], b[0]) == (1.0, 2.0)
dist.barrier()
"""
    )
    run_ranks(4, body)


@pytest.mark.parametrize("world", [1, 3])
def test_objects(world: int) -> None:
    body = (
        HEAD
        + """
class Point:
    def __init__(self, x): self.x = x
mine = {"rank": RANK, "blob": b"x" * (RANK * 100_000), "array": np.arange(RANK), "p": Point(RANK)}
everyone = [None] * WORLD
dist.all_gather_object(everyone, mine)
assert [e["rank"] for e in everyone] == list(range(WORLD))
assert [len(e["blob"]) for e in everyone] == [r * 100_000 for r in range(WORLD)]
assert everyone[-1]["array"].tolist() == list(range(WORLD - 1)) and everyone[-1]["p"].x == WORLD - 1
last = WORLD - 1
gathered = [None] * WORLD if RANK == last else None
dist.gather_object(RANK * 10, gathered, dst=last)
assert gathered == ([r * 10 for r in range(WORLD)] if RANK == last else None)
box = [RANK, "from", RANK] if RANK == last else [None] * 3
dist.broadcast_object_list(box, src=last)
assert box == [last, "from", last]
# An object that cannot be pickled: its rank gets pickle's exception, the others are told.
for call in (
    lambda o: dist.all_gather_object([None] * WORLD, o),
    lambda o: dist.gather_object(o, [None] * WORLD, 0),
    lambda o: dist.broadcast_object_list([o], 0),
):
    try:
        call((lambda: 0) if RANK == 0 else 1)
    except dist.RemoteError as error:
        assert RANK != 0 and error.rank == 0 and "pickle" in str(error), error
    except Exception as error:
        assert RANK == 0 and "pickle" in str(error).lower(), error
    else:
        raise AssertionError("nothing was raised")
dist.barrier()  # the group is whole after that
"""
    )
    run_ranks(
        world,
        body.replace("dist.RemoteError", "errors.RemoteError").replace(
            "import hashlib", "import hashlib\nfrom paceline import errors", 1
        ),
    )


def test_two_groups_do_not_disturb_each_other() -> None:
    body = (
        HEAD
        + """
other = dist.ProcessGroup("other")
a, b = np.full(70_000, 1.0), np.full(70_000, 2.0)
for turn in range(20):
    first = dist.all_reduce(a, dist.ReduceOp.AVG, async_op=True)
    second = other.all_reduce(b, dist.ReduceOp.AVG, async_op=True)
    other.barrier()
    first.wait(); second.wait()
assert a.min() == a.max() == 1.0 and b.min() == b.max() == 2.0
pair = dist.new_group([0, 2])
if RANK == 1:
    assert pair is dist.GroupMember.NON_GROUP_MEMBER and dist.get_rank(pair) == -1
else:
    assert dist.get_world_size(pair) == 2 and dist.get_process_group_ranks(pair) == [0, 2]
    x = np.array([float(RANK)])
    dist.broadcast(x, src=2, group=pair)
    assert x[0] == 2.0
    try:
        dist.broadcast(x, src=1, group=pair)
    except ValueError as error:
        assert "rank is not in group" in str(error)
other.close()
other.close()
try:
    other.barrier()
except RuntimeError as error:
    assert "was destroyed" in str(error)
else:
    raise AssertionError
dist.all_reduce(a)
dist.destroy_process_group()
assert not dist.is_initialized()
dist.init_process_group()  # and again
dist.barrier()
"""
    )
    for result in run_ranks(3, body):
        assert not result.stderr


def test_what_is_known_without_asking() -> None:
    body = (
        HEAD
        + """
assert dist.is_available() and dist.is_initialized()
assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (RANK, WORLD, "shm")
assert repr(dist.default_group()) == f"ProcessGroup('default', rank={RANK}, world_size={WORLD})"
try:
    dist.init_process_group()
except ValueError as error:
    assert "twice" in str(error)
else:
    raise AssertionError
"""
    )
    run_ranks(2, body)


BAD_CALLS = [
    ("dist.all_reduce([1.0])", "TypeError", "expected a paceline tensor"),
    ("dist.all_reduce(np.array(['a']))", "TypeError", "is not supported"),
    ("dist.all_reduce(b'read only')", "TypeError", "writable"),
    ("dist.broadcast(np.ones(1), 2)", "ValueError", "got 2, expected one of 0, 1"),
    ("dist.broadcast(np.ones(1), -1)", "ValueError", "got -1"),
    ("dist.reduce(np.ones(1), 7)", "ValueError", "[reduce]"),
    ("dist.all_reduce(np.ones(1), 9)", "ValueError", "9 is not a valid ReduceOp"),
    ("dist.all_gather([np.ones(1)], np.ones(1))", "ValueError", "got 1, expected 2"),
    ("dist.all_gather_object([None], 1)", "ValueError", "got 1, expected 2"),
    ("dist.send(np.ones(1), RANK)", "ValueError", "[send]"),
    ("dist.send(np.ones(1), 0, tag=-1)", "ValueError", "tag must not be negative"),
    ("dist.all_gather_into_tensor(np.ones(3), np.ones(2))", "ValueError", "[all_gather]"),
    ("dist.reduce_scatter_tensor(np.ones(2), np.ones(2))", "ValueError", "[reduce_scatter]"),
    ("dist.new_group([0, 5])", "ValueError", "[new_group]"),
]


def test_bad_arguments_raise_at_once_and_the_group_stays_whole() -> None:
    check_bad_calls(BAD_CALLS)
