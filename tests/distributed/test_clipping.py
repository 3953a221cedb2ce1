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


GATHERED = """
import paceline as torch
from paceline import Accelerator
from rankside import RANK, out

def train(looks, uneven):
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(300, 400), torch.nn.ReLU(), torch.nn.Linear(400, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    params, norms = list(model.parameters()), []
    for step in range(5):
        torch.manual_seed(100 * step + RANK)
        x = torch.randn(16, 300)
        if step == 3:
            with accelerator.no_sync(model):
                accelerator.backward((model(x) ** 2).sum())
        accelerator.backward((model(x) ** 2).sum())
        if looks:
            assert all(p.grad is not None for p in params)
        if step == 4 and uneven:  # the norm is of what it is changed to
            params[1].grad.mul_(2.0)
        if not uneven or RANK == 0 or step % 2:  # some ranks do not ask for it every time
            norms.append(accelerator.clip_grad_norm_(params, 0.5).item().hex())
            true = sum(float((p.grad.numpy().astype("f8") ** 2).sum()) for p in params) ** 0.5
            assert abs(true - 0.5) < 1e-4, true
        optimizer.step()
        optimizer.zero_grad()
    accelerator.free_memory()
    return norms, [p.detach().numpy().tobytes() for p in params]

for uneven in (False, True):
    assert train(False, uneven) == train(True, uneven)
out(train(False, False)[0])
"""


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_norm_gathered_in_the_reduction_changes_no_bit(n: int) -> None:
    ranks = run_ranks(n, GATHERED, timeout=60)
    assert all(rank.outs == ranks[0].outs for rank in ranks)
