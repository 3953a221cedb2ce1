# SPDX-License-Identifier: Apache-2.0
"""A training step in its steady state asks the system for no memory: no mapping, no page fault."""

from __future__ import annotations

import pytest

import harness

STEPS = """\
import gc, resource, sys
import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator, _C
from rankside import out

precision = "no" if {fp32} else "bf16"
torch.manual_seed(0)
nn = torch.nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(128), nn.LayerNorm(128)
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)
        self.mlp = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (p.view(b, t, 4, 32).transpose(1, 2) for p in self.qkv(self.norm1(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))

class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(2000, 128), nn.Linear(128, 2000)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids):
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

models = {{
    "gpt": (Gpt(), torch.randint(0, 2000, (4, 128)), torch.randint(0, 2000, (512,))),
    "mlp": (nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)),
            torch.randn(64, 784), torch.randint(0, 10, (64,))),
}}
accelerator = Accelerator(mixed_precision=precision)

def mappings():
    with open("/proc/self/maps") as file:
        return [line.split()[0] for line in file]

def seen():
    return mappings(), _C.memory_stats()["held"], resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for name, (model, x, y) in models.items():
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)

    def step():
        logits = model(x)
        accelerator.backward(F.cross_entropy(logits.view(-1, logits.shape[-1]), y))
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(6):
        step()
    gc.collect()
    before = seen()
    for _ in range(20):
        step()
    after = seen()
    new = sorted(set(after[0]) - set(before[0]))
    out([name, len(new), after[1] - before[1], (after[2] - before[2]) / 20])
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 2])
def test_twenty_steps(n: int, precision: str) -> None:
    for rank in harness.run_ranks(n, STEPS.format(fp32=precision == "fp32"), timeout=120):
        assert [name for name, *_ in rank.outs] == ["gpt", "mlp"]
        for name, mappings, held, faults in rank.outs:
            assert mappings == 0, name
            assert held == 0, name
            # Without the cache a step of this GPT touches some 2000 new pages. The interpreter
            # and a kernel that moves pages may cause a few.
            assert faults < 8, name
