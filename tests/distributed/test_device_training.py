# SPDX-License-Identifier: Apache-2.0
"""Training with gradients reduced on GPUs, with the virtual one: what the CPU gives, within
rounding, and the same bits on all ranks."""

from __future__ import annotations

import numpy as np
import pytest

import vcuda
from harness import Result, _result, run_ranks
from machines import Net

BODY = """
import hashlib
import numpy as np
import paceline as pl
from paceline import nn, optim
from paceline.accelerator import Accelerator
from paceline.utils import DistributedDataParallelKwargs
from rankside import ARGS, RANK, WORLD, out

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.norm = nn.LayerNorm(64)
        self.unused = nn.Linear(5, 5)
        self.sometimes = nn.Linear(64, 64)
        self.last = nn.Linear(64, 4)

    def forward(self, x, twice):
        x = self.norm(self.first(x)).relu()
        return self.last(self.sometimes(x) if twice else x)

pl.manual_seed(RANK)  # the parameters are rank 0's after prepare
kwargs = DistributedDataParallelKwargs(bucket_cap_mb=ARGS["bucket_mb"])
accelerator = Accelerator(cpu=ARGS["cpu"], gradient_accumulation_steps=ARGS["accumulate"],
                          kwargs_handlers=[kwargs])
device = accelerator.device
assert ("cuda" in str(device)) is not ARGS["cpu"], device
net = Net()
model, optimizer = accelerator.prepare(net, optim.AdamW(net.parameters(), lr=1e-2))
assert str(next(iter(net.parameters())).device) == str(device)

losses = []
for step in range(ARGS["steps"]):
    rng = np.random.default_rng([step, RANK])
    x = pl.tensor(rng.standard_normal((8, 16)).astype("float32")).to(device)
    y = pl.tensor(rng.integers(0, 4, 8)).to(device)
    with accelerator.accumulate(model):
        # One rank alone uses a layer, then nobody, then all.
        twice = [RANK == 0, False, True][step % 3]
        loss = nn.functional.cross_entropy(model(x, twice), y)
        accelerator.backward(loss)
        assert net.unused.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
    losses.append(accelerator.reduce(loss.detach(), "mean").item())

flat = np.concatenate([p.detach().cpu().numpy().ravel() for p in net.parameters()])
gathered = accelerator.gather(pl.tensor(flat[:3]).to(device))
assert gathered.shape == (3 * WORLD,)
out({"losses": losses, "hash": hashlib.sha256(flat.tobytes()).hexdigest(),
     "sample": flat[::37].tolist()})
accelerator.end_training()
"""


def train(world: int, *, cpu: bool, seed: int = 0, **options: object) -> list[Result]:
    """Train on the virtual GPUs of some ranks, or on their CPU."""
    args = {"cpu": cpu, "accumulate": 1, "steps": 7, "bucket_mb": 0.01, **options}
    env = vcuda.variables(worker=True, devices=world, seed=seed)
    return run_ranks(world, BODY, env=env, args=args, timeout=90)


def check_alike(results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Give losses and a sample of the parameters, having seen that the ranks agree."""
    (first,) = results[0].outs
    for result in results:
        assert result.outs[0]["hash"] == first["hash"]
    return np.array(first["losses"]), np.array(first["sample"])


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (2, {}),
        (2, {"accumulate": 3, "steps": 9}),
        (2, {"bucket_mb": 25, "seed": 5}),
        (4, {"seed": 3}),
    ],
)
def test_as_on_the_cpu(world: int, options: dict[str, object]) -> None:
    losses, sample = check_alike(train(world, cpu=False, **options))
    expected_losses, expected = check_alike(train(world, cpu=True, **options))
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    np.testing.assert_allclose(sample, expected, rtol=2e-3, atol=2e-5)


def test_over_several_machines() -> None:
    args = {"cpu": False, "accumulate": 1, "steps": 4, "bucket_mb": 0.01}
    with (
        Net((2, 1)) as net,
        net.ranks(BODY, args=args, **vcuda.variables(worker=True, devices=2)) as ranks,
    ):
        ranks.wait(90)
        ranks.check()
        spread = [_result(rank) for rank in ranks.ranks]
    check_alike(spread)
    together = train(3, cpu=False, steps=4)
    assert spread[0].outs[0]["hash"] == together[0].outs[0]["hash"]
