# SPDX-License-Identifier: Apache-2.0
"""What a training step costs the host: it waits for nothing, and the optimizer is few launches.

The virtual GPU counts both. A second run reads the loss in the step, to see that a wait is counted.
"""

from __future__ import annotations

import ast

import pytest

import vcuda

STEP = """
import ctypes, os
import paceline as torch
from paceline import nn
from paceline.nn import functional as F
from paceline.nn.utils import clip_grad_norm_

class Counts(ctypes.Structure):
    _fields_ = [("launches", ctypes.c_uint64), ("waits", ctypes.c_uint64)]

library = ctypes.CDLL(os.environ["PACELINE_CUDA_LIBRARY"])

def count():
    c = Counts()
    library.vcuda_count(ctypes.byref(c))
    return c.launches, c.waits

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.norm2 = nn.Linear(16, 16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        qkv = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (t.reshape(2, 8, 2, 8).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(2, 8, 16)), 0.1, True)
        return x + 0.5 * self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(32, 16), nn.Embedding(8, 16)
        self.blocks = nn.Sequential(*[Block() for _ in range(12)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 32, bias=False)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.place(torch.arange(8, device=tokens.device))
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).reshape(-1, 32), targets)

torch.manual_seed(0)
accelerator = torch.Accelerator(mixed_precision="bf16" if %(low)s else "no")
model = Model().to("cuda")
optimizer = torch.optim.%(optimizer)s
if %(prepared)s:
    model, optimizer = accelerator.prepare(model, optimizer)
clip = accelerator.clip_grad_norm_ if %(prepared)s else clip_grad_norm_
backward = accelerator.backward if %(prepared)s else torch.Tensor.backward
tokens = torch.randint(0, 32, (2, 8)).to("cuda")
targets = torch.randint(0, 32, (16,)).to("cuda")
norms, losses, seen, forward = [], [], [], []
for step in range(3):
    before = count()
    with torch.autocast("cuda", torch.bfloat16, enabled=%(low)s):
        loss = model(tokens, targets)
    at_backward = count()
    backward(loss)
    at_clip = count()
    norms.append(clip(model.parameters(), 0.5))
    at_step = count()
    optimizer.step()
    after = count()
    optimizer.zero_grad()
    losses.append(loss.detach())
    %(more)s
    seen.append((count()[1] - before[1], at_step[0] - at_clip[0], after[0] - at_step[0]))
    forward.append(at_backward[0] - before[0])
assert len(list(model.parameters())) == 149
assert all(n.device.type == "cuda" and 0.5 < n.item() < 5 for n in norms)
values = [x.item() for x in losses]
assert values == sorted(values, reverse=True), values
# A weight is cast once; then the step writes it in bf16 too. 12 blocks of 4 layers, and the head.
assert forward[0] - forward[1] == (12 * 4 * 2 + 1 if %(low)s else 0), forward
assert forward[1] == forward[2]
print(seen)
"""
ADAMW = "AdamW(model.parameters(), lr=1e-2)"
SGD = "SGD(model.parameters(), lr=0.1, momentum=0.9)"


def seen(
    optimizer: str, *, low: bool = False, prepared: bool = False, more: str = "pass"
) -> list[tuple[int, int, int]]:
    """Waits of each step, launches of clipping, launches of the optimizer."""
    values = {"optimizer": optimizer, "low": low, "prepared": prepared, "more": more}
    out: list[tuple[int, int, int]] = ast.literal_eval(vcuda.run(STEP % values, timeout=120))
    return out


@pytest.mark.parametrize("prepared", [False, True], ids=["", "accelerator"])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_a_step_waits_for_nothing(low: bool, prepared: bool) -> None:
    steps = seen(SGD if low and prepared else ADAMW, low=low, prepared=prepared)
    assert all(waits == 0 for waits, _, _ in steps)
    # The squares of all gradients, then their sum and the factor; all parameters.
    assert all((clip, step) == (2, 1) for _, clip, step in steps[1:])
    assert steps[0][2] <= 3  # and its state, filled with zeros


def test_a_wait_is_counted() -> None:
    assert [waits for waits, _, _ in seen(SGD, more="loss.item()")] == [1, 1, 1]


NUMBERS = """
import ctypes, os
import paceline as torch

class Counts(ctypes.Structure):
    _fields_ = [("launches", ctypes.c_uint64), ("waits", ctypes.c_uint64)]

library = ctypes.CDLL(os.environ["PACELINE_CUDA_LIBRARY"])

def count():
    c = Counts()
    library.vcuda_count(ctypes.byref(c))
    return c.launches

x = torch.arange(6.0).to("cuda")
one = torch.tensor(1.5)
before = count()
made = [x * 0.5, 2 / (x + 1), x**2, x > 3, one - x, x / one, x.clamp(min=2)]
x *= 0.25
print(count() - before)
"""


def test_a_number_costs_no_launch() -> None:
    assert int(vcuda.run(NUMBERS)) == 9
