# SPDX-License-Identifier: Apache-2.0
"""Small models trained some steps on the GPU: the losses and weights of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from gpu.place import on_gpu, on_host
from numerics.compare import assert_close
from paceline import amp, nn, optim
from paceline.nn.utils import clip_grad_norm_

STEPS = 6
VOCABULARY, TIME, WIDTH, HEADS = 17, 12, 16, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(WIDTH, 2)
        q, k, v = (p.view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2) for p in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, WIDTH))
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), 0.1)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TIME, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, index: Any, target: Any) -> Any:
        places = paceline.arange(index.shape[1], device=index.device)
        x = self.blocks(self.tokens(index) + self.places(places))
        logits = F.linear(self.norm(x), self.tokens.weight)  # tied
        return F.cross_entropy(logits.view(-1, VOCABULARY), target.reshape(-1))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(TIME, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
        )

    def forward(self, x: Any, y: Any) -> Any:
        return F.cross_entropy(self.net(x), y, label_smoothing=0.1)


def gpt_batch(step: int) -> tuple[Any, Any]:
    rows = np.random.default_rng(step).integers(0, VOCABULARY, (4, TIME + 1))
    return paceline.tensor(rows[:, :-1]), paceline.tensor(rows[:, 1:])


def mlp_batch(step: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((8, TIME)).astype(np.float32)
    return paceline.tensor(x), paceline.tensor(rng.integers(0, 3, 8))


def train(
    make: Callable[[], nn.Module], batch: Callable[[int], tuple[Any, Any]], device: str, low: Any
) -> tuple[list[float], list[Any]]:
    paceline.manual_seed(1)
    model = make().to(device)
    assert {p._device_index for p in model.parameters()} == {0 if device == "cuda" else -1}
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    paceline.manual_seed(2)
    losses = []
    for step in range(STEPS):
        x, y = (t.to(device) for t in batch(step))
        with amp.autocast(device, low or paceline.bfloat16, enabled=low is not None):
            loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, [on_host(p).double().numpy() for p in model.parameters()]


@pytest.mark.parametrize("low", [None, paceline.bfloat16, paceline.float16], ids=str)
@pytest.mark.parametrize(("make", "batch"), [(GPT, gpt_batch), (MLP, mlp_batch)])
def test_as_on_the_cpu(make: Any, batch: Any, low: Any) -> None:
    losses, weights = train(make, batch, "cpu", low)
    there, moved = train(make, batch, "cuda", low)
    # Six steps of a rate of 3e-3: an element whose gradient is near zero may step the other way.
    assert_close(there, losses, 2e-2 if low else 1e-5, "losses")
    assert losses[0] != losses[-1]
    for w, g in zip(weights, moved, strict=True):
        off = np.abs(g - w)
        assert float(np.median(off)) < (2e-3 if low else 1e-6)
        assert float(off.max()) < 2 * STEPS * 3e-3


def test_the_same_bits_twice() -> None:
    first, second = (train(GPT, gpt_batch, "cuda", paceline.bfloat16) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_an_autocast_copy_follows_its_weight() -> None:
    w = on_gpu(paceline.ones(8, 8)).requires_grad_()
    x = on_gpu(paceline.ones(2, 8))
    with amp.autocast("cuda", paceline.bfloat16):
        before = F.linear(x, w)
        with paceline.no_grad():
            w *= 2
        after = F.linear(x, w)
    assert before.dtype == paceline.bfloat16
    assert (before[0, 0].item(), after[0, 0].item()) == (8.0, 16.0)


def test_an_autocast_copy_does_not_outlive_a_move() -> None:
    layer = paceline.nn.Linear(8, 8, bias=False)
    with paceline.no_grad():
        layer.weight.fill_(1.0)
    with amp.autocast("cpu", paceline.bfloat16):
        layer(paceline.ones(2, 8))  # no backward pass, which would drop the copy
    layer.to("cuda")
    with amp.autocast("cuda", paceline.bfloat16):
        assert layer(on_gpu(paceline.ones(2, 8)))[0, 0].item() == 8.0


def test_what_is_made_again_in_the_backward_pass() -> None:
    """Note [made again]: a GELU's result of more than 128 KiB is not kept but computed twice."""
    rng = np.random.default_rng(4)
    x = paceline.tensor(rng.standard_normal((300, 128)).astype(np.float32))
    w = paceline.tensor(rng.standard_normal((64, 128)).astype(np.float32))
    found = []
    for move in (lambda t: t, on_gpu):
        a, b = move(x).requires_grad_(), move(w).requires_grad_()
        F.linear(F.gelu(a), b).square().mean().backward()
        found.append([on_host(t.grad).numpy() for t in (a, b) if t.grad is not None])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, 1e-5, "made again")


@pytest.mark.parametrize("width", [48, 50])  # 50: no auxiliary matrix of the library's
@pytest.mark.parametrize("low", [None, paceline.bfloat16], ids=str)
@pytest.mark.parametrize("inside", [True, False])
def test_a_gradient_through_gelu(inside: bool, low: paceline.dtype | None, width: int) -> None:
    """Note [through GELU]: the second layer's product is multiplied by the slope on the way."""
    rng = np.random.default_rng(5)
    shapes = [(2, 9, 16), (width, 16), (width,), (24, width)]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    found = []
    for place, move in (("cpu", lambda t: t), ("cuda", on_gpu)):
        x, w, b, v = leaves = [move(paceline.tensor(a)).requires_grad_() for a in arrays]
        with amp.autocast(place, low or paceline.bfloat16, enabled=low is not None):
            if inside:
                h = F.linear(x, w, b, activation="gelu_tanh")
            else:
                h = F.gelu(F.linear(x, w, b), approximate="tanh")
            F.linear(h, v).float().square().mean().backward()
        found.append([on_host(t.grad).numpy() for t in leaves if t.grad is not None])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, 2e-2 if low else 1e-5, "through GELU")
