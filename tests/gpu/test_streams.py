# SPDX-License-Identifier: Apache-2.0
"""Streams under many orders: right with their waits, wrong in some order without one.

Waits that the script makes are left out by the script; those that paceline makes by itself (memory
that another stream still reads, a backward pass behind all streams) by the virtual GPU, which can
drop all waits of streams without a high priority.
"""

from __future__ import annotations

import os

import pytest

import vcuda
from distributed.test_device_training import BODY as TRAINING
from harness import run_ranks

# Prints one line: the values that a stream computed from what another one made.
DATA = """\
import os, paceline as torch
cuda = torch.cuda
x = torch.zeros(64, device="cuda")
side = cuda.Stream()
out = []
for k in range(1, 6):
    x = x + k
    if not os.environ.get("LEAVE_OUT"):
        side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        out.append((x * 2).sum().item())
print(out)
"""

# Memory: x's is handed out again while the side stream still reads it.
MEMORY = """\
import paceline as torch
cuda = torch.cuda
side = cuda.Stream(priority=-1)
out = []
for k in range(1, 6):
    x = torch.full((64,), float(k), device="cuda")
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        y = x * 2
    del x
    z = torch.full((64,), 1000.0, device="cuda")
    with cuda.stream(side):
        out.append(y.sum().item())
    cuda.synchronize()
    del z, y
print(out)
"""

# A forward pass on one stream, the backward pass on another.
BACKWARD = """\
import paceline as torch
cuda = torch.cuda
w = torch.ones(64, device="cuda", requires_grad=True)
side = cuda.Stream(priority=-1)
out = []
for k in range(1, 6):
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        loss = ((w * k) ** 2).sum()
    loss.backward()
    out.append(w.grad.sum().item())
    w.grad = None
    del loss
print(out)
"""


# Memory lent to another stream, which the lender was told of (-1: it shall not wait).
LENT = """\
import os, paceline as torch
cuda = torch.cuda
side = cuda.Stream()
number = -1 if os.environ.get("LEAVE_OUT") else side.cuda_stream
x = torch.zeros(64, device="cuda")
out = []
for k in range(1, 6):
    x = x + k
    capsule = x.__dlpack__(stream=number)
    with cuda.stream(side):
        out.append((torch.from_dlpack(capsule) * 2).sum().item())
print(out)
"""


def printed(code: str, seed: int, **variables: str) -> str:
    # Shared blocks, whatever the seed: that is where memory is handed out again at once.
    env = {**vcuda.environment(seed=seed), "PACELINE_CUDA_WHOLE_BLOCKS": "0", **variables}
    return vcuda.run(code, env={**os.environ, **env})


@pytest.mark.parametrize(
    ("code", "expected", "left_out"),
    [
        (DATA, [128.0 * k for k in (1, 3, 6, 10, 15)], {"LEAVE_OUT": "1"}),
        (LENT, [128.0 * k for k in (1, 3, 6, 10, 15)], {"LEAVE_OUT": "1"}),
        (MEMORY, [128.0 * k for k in range(1, 6)], {"PACELINE_VCUDA_DROPPED_WAITS": "2"}),
        (BACKWARD, [128.0 * k * k for k in range(1, 6)], {"PACELINE_VCUDA_DROPPED_WAITS": "2"}),
    ],
    ids=["data", "lent", "memory", "backward"],
)
def test_waits(code: str, expected: list[float], left_out: dict[str, str]) -> None:
    for seed in range(3):
        assert printed(code, seed).strip() == str(expected)
    assert any(printed(code, seed, **left_out).strip() != str(expected) for seed in range(8))


# Each step on another stream, which the one before has produced for: the reducer's buckets, the
# collectives and the optimizer follow.
LOOP = 'for step in range(ARGS["steps"]):\n'
TURNS = """\
streams = [pl.cuda.Stream(), pl.cuda.Stream(), pl.cuda.default_stream()]
for step in range(ARGS["steps"]):
    turn = streams[step % 3]
    turn.wait_stream(pl.cuda.current_stream())
    pl.cuda.set_stream(turn)
"""


def test_ranks_that_train_on_streams_in_turn() -> None:
    assert LOOP in TRAINING
    args = {"cpu": False, "accumulate": 1, "steps": 6, "bucket_mb": 0.01}

    def told(body: str, seed: int) -> str:
        env = vcuda.variables(worker=True, devices=2, seed=seed)
        return str([r.outs for r in run_ranks(2, body, env=env, args=args, timeout=90)])

    expected = told(TRAINING, 0)
    for seed in (0, 3):
        assert told(TRAINING.replace(LOOP, TURNS), seed) == expected
