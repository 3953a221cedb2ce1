# SPDX-License-Identifier: Apache-2.0
"""A table that embeds and classifies, its gradient reduced in a bucket: with the classifier fused
as with a linear layer and its loss, over ranks and accumulated passes."""

from __future__ import annotations

import numpy as np
import pytest

import vcuda
from harness import run_ranks

BODY = """
import numpy as np
import paceline as pl
from paceline import nn, optim
from paceline.accelerator import Accelerator
from paceline.nn import functional as F
from rankside import ARGS, RANK, out

class Net(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.table, self.norm = nn.Embedding(37, 16), nn.LayerNorm(16)
        self.fused = fused

    def forward(self, ids, targets):
        x, w = self.norm(self.table(ids)), self.table.weight
        if self.fused:
            options = nn.LinearCrossEntropyOptions(batch_chunk_size=5)
            return F.linear_cross_entropy(x, w, targets, options=options)
        return F.cross_entropy(F.linear(x, w), targets)

accelerator = Accelerator(cpu=ARGS["cpu"], gradient_accumulation_steps=2,
                          mixed_precision=ARGS["mixed"])
for fused in (False, True):
    pl.manual_seed(0)
    net = Net(fused)
    model, optimizer = accelerator.prepare(net, optim.SGD(net.parameters(), lr=0.5))
    rng = np.random.default_rng(RANK)
    for _ in range(4):
        ids = pl.tensor(rng.integers(0, 37, 12)).to(accelerator.device)
        with accelerator.accumulate(model):
            accelerator.backward(model(ids, ids.flip(0)))
            optimizer.step()
            optimizer.zero_grad()
    out(net.table.weight.detach().cpu().tolist())
accelerator.end_training()
"""


@pytest.mark.parametrize(("cpu", "mixed"), [(True, "no"), (True, "bf16"), (False, "bf16")])
def test_fused_or_not(cpu: bool, mixed: str) -> None:
    env = vcuda.variables(worker=True, devices=2, seed=3)
    ranks = run_ranks(2, BODY, env=env, args={"cpu": cpu, "mixed": mixed}, timeout=90)
    assert ranks[0].outs == ranks[1].outs
    pair, fused = (np.array(o) for o in ranks[0].outs)
    tolerance = 1e-5 if mixed == "no" else 2e-2  # bf16 slopes, rounded at another scale
    np.testing.assert_allclose(fused, pair, rtol=tolerance, atol=tolerance / 4)
