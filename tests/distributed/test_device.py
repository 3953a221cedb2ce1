# SPDX-License-Identifier: Apache-2.0
"""Collectives on tensors of a GPU, with the virtual one: PyTorch's functions and their results.

The core's own tests of it (tests/c/test_vcuda_comm.c, test_vcuda_faults.c) go further.
"""

from __future__ import annotations

import pytest

import vcuda
from harness import Break, Result, run_ranks

HEAD = """
import numpy as np
import paceline as pl
import paceline.distributed as dist
from paceline.distributed import ReduceOp
from paceline.errors import DeviceError
from rankside import ARGS, RANK, WORLD, failing, mark, out

dist.init_process_group(ARGS.get("backend"))
GPU = f"cuda:{RANK}"

def on_gpu(array):
    return pl.tensor(array).to(GPU)
"""


def on_gpus(world: int, body: str, **options: object) -> list[Result]:
    """Run a script on ranks that have a virtual GPU each."""
    env = vcuda.variables(worker=True, devices=world)
    return run_ranks(world, HEAD + body, env=env, timeout=60, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_function(world: int) -> None:
    body = """
def data(rank, n=6, dtype="float32"):
    return (np.arange(n) * 3 % 7 + rank).astype(dtype)

every = [data(r) for r in range(WORLD)]
for op, want in [(ReduceOp.SUM, sum(every)), (ReduceOp.AVG, sum(every) / WORLD),
                 (ReduceOp.MAX, np.max(every, 0)), (ReduceOp.MIN, np.min(every, 0))]:
    x = on_gpu(data(RANK))
    assert dist.all_reduce(x, op) is None
    assert str(x.device) == GPU
    np.testing.assert_allclose(x.cpu().numpy(), want)

x = on_gpu(data(RANK).reshape(2, 3)).t()  # not contiguous
dist.all_reduce(x)
np.testing.assert_array_equal(x.cpu().numpy(), sum(every).reshape(2, 3).T)

x = on_gpu(data(RANK))
work = dist.all_reduce(x, async_op=True)
work.wait()
np.testing.assert_array_equal(x.cpu().numpy(), sum(every))
assert work.is_completed()

last = WORLD - 1
x = on_gpu(data(RANK))
dist.broadcast(x, src=last)
np.testing.assert_array_equal(x.cpu().numpy(), data(last))
x = on_gpu(data(RANK))
dist.reduce(x, dst=last)
if RANK == last:
    np.testing.assert_array_equal(x.cpu().numpy(), sum(every))

parts = [pl.zeros(6, device=GPU) for _ in range(WORLD)]
dist.all_gather(parts, on_gpu(data(RANK)))
for r, part in enumerate(parts):
    np.testing.assert_array_equal(part.cpu().numpy(), data(r))
flat = pl.zeros(6 * WORLD, device=GPU)
dist.all_gather_into_tensor(flat, on_gpu(data(RANK)))
np.testing.assert_array_equal(flat.cpu().numpy(), np.concatenate(every))
dist.gather(on_gpu(data(RANK)), parts if RANK == last else None, dst=last)
mine = pl.zeros(6, device=GPU)
dist.scatter(mine, [on_gpu(data(r)) for r in range(WORLD)] if RANK == 0 else None, src=0)
np.testing.assert_array_equal(mine.cpu().numpy(), data(RANK))
dist.reduce_scatter(mine, [on_gpu(data(RANK) + r) for r in range(WORLD)])
np.testing.assert_array_equal(mine.cpu().numpy(), sum(every) + RANK * WORLD)
dist.reduce_scatter_tensor(mine, on_gpu(np.concatenate([data(RANK) + r for r in range(WORLD)])))
np.testing.assert_array_equal(mine.cpu().numpy(), sum(every) + RANK * WORLD)

sent = np.concatenate([data(10 * RANK + r) for r in range(WORLD)])
got = pl.zeros(6 * WORLD, device=GPU)
dist.all_to_all_single(got, on_gpu(sent))
want = np.concatenate([data(10 * r + RANK) for r in range(WORLD)])
np.testing.assert_array_equal(got.cpu().numpy(), want)

if WORLD > 1 and RANK < 2:
    peer = 1 - RANK
    dist.send(on_gpu(data(RANK)), peer) if RANK else dist.recv(mine, peer)
    dist.recv(mine, peer) if RANK else dist.send(on_gpu(data(RANK)), peer)
    np.testing.assert_array_equal(mine.cpu().numpy(), data(peer))

flags = on_gpu(np.array([RANK == 0, False, True]))
dist.all_reduce(flags, ReduceOp.MAX)
assert flags.cpu().numpy().tolist() == [True, False, True]

host = data(RANK)  # memory of the CPU, in the same program
dist.all_reduce(host)
np.testing.assert_array_equal(host, sum(every))
dist.barrier()
dist.destroy_process_group()
"""
    on_gpus(world, body)


def test_what_differs_is_told_by_name() -> None:
    body = """
x = on_gpu(np.ones(4, "float32"))
dist.all_reduce(x)
with failing():
    if RANK == 0:
        dist.all_reduce(x)
    else:
        dist.all_reduce(x.cpu())
"""
    for result in on_gpus(2, body):
        error = result.exception
        assert error["type"] == "CollectiveMismatchError"
        assert "disagree on device" in error["text"]
        assert "rank=0, device=cuda" in error["text"]
        assert "rank=1, device=cpu" in error["text"]
        assert "script.py:" in error["text"]


def test_two_devices_in_one_call() -> None:
    body = """
x = on_gpu(np.ones(4, "float32"))
try:
    dist.all_gather_into_tensor(pl.zeros(8), x)
except RuntimeError as error:
    assert "in and out lie on two devices" in str(error), error
else:
    raise AssertionError
dist.all_reduce(x)
"""
    on_gpus(2, body)


@pytest.mark.parametrize("world", [2, 4])
def test_a_killed_rank_is_named_while_the_host_waits_for_the_device(world: int) -> None:
    body = """
import time
x = on_gpu(np.ones(1 << 12, "float32"))
for _ in range(3):
    dist.all_reduce(x)
x.sum().item()
with failing():
    step = 0
    while True:
        if step == 20:
            mark("busy")
        if step > 20 and RANK == 1:
            time.sleep(60)
        dist.all_reduce(x)
        x.sum().item()
        step += 1
"""
    results = on_gpus(world, body, breaks=[Break(1, "busy", delay_s=0.3)], expect={1: -9})
    for result in results:
        if result.rank == 1:
            continue
        error = result.exception
        assert error["type"] == "PeerLostError"
        assert error["dead_ranks"] == [1]
        assert "rank 1 (pid" in error["text"]
        assert "script.py:" in error["call_site"]
        assert error["at"] - results[1].broken_at < 1.0  # promised: 0.2 s


def test_without_nccl_one_sentence_on_all_ranks() -> None:
    body = """
import os
if RANK == 1:
    os.environ["PACELINE_NCCL"] = "/nowhere/libnccl.so.2"
x = on_gpu(np.ones(4, "float32"))
try:
    dist.all_reduce(x)
except DeviceError as error:
    out(str(error))
dist.barrier()  # the group is whole
"""
    for result in on_gpus(2, body):
        (text,) = result.outs
        assert "rank 1:" in text
        assert "/nowhere/libnccl.so.2" in text
        assert "\n" not in text


def test_backends_by_name() -> None:
    body = """
assert dist.get_backend() == "nccl"
assert dist.get_backend(dist.new_group()) == "shm"
x = on_gpu(np.ones(4, "float32"))
group = dist.new_group([0, 1])
dist.all_reduce(x, group=group)
dist.all_reduce(x)
assert x.cpu().numpy().tolist() == [4] * 4
dist.destroy_process_group(group)
dist.all_reduce(x)
dist.destroy_process_group()
"""
    on_gpus(2, body, args={"backend": "nccl"})
    (result,) = run_ranks(
        1,
        """
import paceline.distributed as dist
from rankside import failing
with failing():
    dist.init_process_group("cpu:gloo,cuda:nccl")
""",
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.exception["type"] == "DeviceError"
    assert "no GPU for NCCL: got backend 'cpu:gloo,cuda:nccl'" in result.exception["text"]
