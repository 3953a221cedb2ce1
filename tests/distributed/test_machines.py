# SPDX-License-Identifier: Apache-2.0
"""Groups over several machines: the same bits as on one, and every fault named."""

from __future__ import annotations

import pytest

from harness import run_ranks
from machines import Net

COLLECTIVES = """
import hashlib
import numpy as np
import paceline as pl
import paceline.distributed as dist
from paceline.distributed import ReduceOp
from rankside import RANK, WORLD, out

def data(rank, size, dtype="float32"):
    return np.random.default_rng([rank, size]).standard_normal(size).astype(dtype)

dist.init_process_group()
found = []
for size in (1, 1000, 300_001):
    parts = [data(r, size) for r in range(WORLD)]
    x = parts[RANK].copy()
    dist.all_reduce(x, ReduceOp.AVG)
    found.append(x)
    half = pl.tensor(parts[RANK]).to(pl.bfloat16)
    dist.all_reduce(half)
    found.append(np.array(half.to(pl.float32).tolist()))
    x = parts[RANK].copy()
    dist.reduce(x, WORLD - 1)
    dist.broadcast(x, WORLD - 1)
    found.append(x)
    rows = np.empty((WORLD, size), "float32")
    dist.all_gather_into_tensor(rows, parts[RANK])
    assert np.array_equal(rows, np.stack(parts))
    own = np.empty(size, "float32")
    dist.reduce_scatter_tensor(own, np.concatenate(parts))
    dist.all_gather_into_tensor(rows, own)
    found.append(rows)
    rows = [np.empty(size, "float32") for _ in range(WORLD)] if RANK == WORLD - 1 else None
    dist.gather(parts[RANK], rows, WORLD - 1)
    assert rows is None or all(map(np.array_equal, rows, parts))
    dist.scatter(own, parts if RANK == 0 else None)
    assert np.array_equal(own, parts[RANK])
    got = np.empty(WORLD * size, "float32")
    dist.all_to_all_single(got, np.concatenate([parts[RANK] + i for i in range(WORLD)]))
    assert np.array_equal(got, np.concatenate([p + RANK for p in parts]))
    right, left = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    for op in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, parts[RANK], right), dist.P2POp(dist.irecv, own, left)]
    ):
        op.wait()
    assert np.array_equal(own, parts[left])
works = [dist.all_reduce(parts[RANK], async_op=True) for _ in range(4)]
assert all(work.wait() for work in works)
box = [None] * WORLD
dist.all_gather_object(box, {"rank": RANK, "array": parts[RANK][:3]})
assert [b["rank"] for b in box] == list(range(WORLD))
class Own: pass
if len(dist.default_group().machines) > 1:
    try:
        dist.all_gather_object(box, Own() if RANK == 0 else 1)
    except Exception as error:
        assert type(error).__name__ == ("RemoteError" if RANK else "TypeError"), error
        assert "PACELINE_ALLOW_PICKLE" in str(error), error
    else:
        raise AssertionError("an object of any type passed")
odd = dist.new_group(range(1, WORLD))  # its lowest rank may be on any machine
if RANK:
    x = np.array([float(RANK)])
    dist.all_reduce(x, group=odd)
    assert x[0] == WORLD * (WORLD - 1) / 2
    dist.destroy_process_group(odd)
dist.barrier()
out(hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest())
"""


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 1, 1), (3, 1)], ids=str)
def test_every_collective_gives_the_bits_of_one_machine(sizes: tuple[int, ...]) -> None:
    with Net(sizes) as net:
        spread = net.run(COLLECTIVES)
    together = run_ranks(sum(sizes), COLLECTIVES)
    assert len({result.outs[0] for result in [*spread, *together]}) == 1


TRAINING = """
import hashlib
import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator
from paceline.utils.data import DataLoader, TensorDataset
from rankside import out

torch.manual_seed(0)
accelerator = Accelerator()
model = torch.nn.Sequential(
    torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = TensorDataset(torch.randn(240, 20), torch.randint(0, 3, (240,)))
loader = DataLoader(data, batch_size=5, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for epoch in range(2):
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach().reshape(1)).tolist())
weights = [p.detach().tolist() for p in model.parameters()]
out(hashlib.sha256(repr((losses, weights)).encode()).hexdigest())
"""


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 1, 1)], ids=str)
def test_one_model_is_trained_to_the_same_bits(sizes: tuple[int, ...]) -> None:
    with Net(sizes) as net:
        spread = net.run(TRAINING)
    together = run_ranks(sum(sizes), TRAINING)
    assert len({result.outs[0] for result in [*spread, *together]}) == 1


@pytest.mark.slow
def test_pytorch_s_models_too() -> None:
    pytest.importorskip("torch")
    body = (
        TRAINING.replace("import paceline as torch", "import torch")
        .replace("paceline.nn.functional", "torch.nn.functional")
        .replace("paceline.utils.data", "torch.utils.data")
    )
    with Net((1, 1)) as net:
        spread = net.run(body, timeout=90)
    together = run_ranks(2, body, timeout=90)
    assert len({result.outs[0] for result in [*spread, *together]}) == 1
