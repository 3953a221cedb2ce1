# SPDX-License-Identifier: Apache-2.0
"""Clipping of gradients in shared buckets: there too the factor waits, on all ranks."""

from __future__ import annotations

import pytest

from harness import run_ranks

BODY = """
import ctypes
import numpy as np
import paceline as torch
from paceline import Accelerator
from rankside import RANK, out

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(300, 400), torch.nn.Linear(400, 3)

    def forward(self, x, both):
        hidden = torch.nn.functional.relu(self.a(x))
        return self.b(hidden) if both else hidden

def train(held, again):
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    params = list(model.parameters())
    waited = []
    for step in range(3):
        torch.manual_seed(100 * step + RANK)
        x = torch.randn(16, 300)
        both = step != 1 or RANK == 0  # else what rank 0 has comes to a rank that has none
        with accelerator.no_sync(model):
            accelerator.backward((model(x, both) ** 2).sum())
        accelerator.backward((model(x, both) ** 2).sum())
        holds = [p.grad for p in params] if held else []
        address = params[0].grad._data_ptr
        before = ctypes.c_float.from_address(address).value
        norm = accelerator.clip_grad_norm_(params, 0.5).item()
        assert norm > 0.5
        waited.append(ctypes.c_float.from_address(address).value == before)
        if again:  # two gradients get more, the others must send what is due to them
            accelerator.backward((params[2].sum() ** 2) * 1e-3)
        optimizer.step()
        if step < 2:
            optimizer.zero_grad()
        del holds
    found = [p.detach().numpy().tobytes() for p in params]
    found += [p.grad.numpy().tobytes() for p in params]
    accelerator.free_memory()
    return waited, found

for again in (False, True):
    waited, mine = train(False, again)
    at_once, same = train(True, again)
    assert waited == [True] * 3, waited
    assert at_once == [False] * 3
    assert mine == same
    out(mine[0].hex())
"""


@pytest.mark.parametrize("n", [1, 2])
def test_waiting_in_buckets_changes_no_bit(n: int) -> None:
    ranks = run_ranks(n, BODY, timeout=60)
    assert all(rank.outs == ranks[0].outs for rank in ranks)
