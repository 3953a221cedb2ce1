# SPDX-License-Identifier: Apache-2.0
"""Results that a graph drops and makes again: same bits, less memory, the same refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from paceline import _C

Tensor = paceline.Tensor
ROWS, WIDTH = 64, 1024  # 256 KiB: large enough to be dropped

MAKERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda x, w: F.gelu(x),
    "gelu_tanh": lambda x, w: F.gelu(x, approximate="tanh"),
    "silu": lambda x, w: F.silu(x),
    "swiglu": lambda x, w: F.swiglu(paceline.cat([x, x], 1)),
    "layer_norm": lambda x, w: F.layer_norm(x, (WIDTH,), w[0], w[1]),
    "rms_norm": lambda x, w: F.rms_norm(x, (WIDTH,), w[0]),
    "layer_norm of a sum": lambda x, w: F.fused_add_layer_norm(x, w[:ROWS], (WIDTH,), w[0])[0],
    "linear_gelu": lambda x, w: F.linear(x, w, activation="gelu"),
    "linear_gelu_tanh": lambda x, w: F.linear(x, w, activation="gelu_tanh"),
}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    paceline.manual_seed(3)
    x = paceline.randn(ROWS, WIDTH).requires_grad_()
    w = (paceline.randn(WIDTH, WIDTH) * 0.05).requires_grad_()
    v = (paceline.randn(32, WIDTH) * 0.05).requires_grad_()
    return x, w, v


def gradients(maker: str, low: bool, keep: bool, passes: int = 1) -> list[np.ndarray]:
    """Gradients of a linear layer behind a maker; `keep` puts a copy between, which is held."""
    x, w, v = inputs()
    with paceline.autocast("cpu", paceline.bfloat16, enabled=low):
        y = MAKERS[maker](x, w)
        y = y.clone() if keep else y
        z = F.linear(y, v)
        del y
    for k in range(passes):
        z.float().square().sum().backward(retain_graph=k < passes - 1)
    grads = [t.grad for t in (x, w, v)]
    return [g.numpy().copy() for g in grads if g is not None]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_the_bits_are_those_of_a_graph_that_holds_everything(maker: str, low: bool) -> None:
    made, held = gradients(maker, low, False), gradients(maker, low, True)
    assert len(made) == len(held) >= 2
    assert all(np.array_equal(a, b) for a, b in zip(made, held, strict=True))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_second_pass_makes_it_again(maker: str) -> None:
    made, held = gradients(maker, False, False, 2), gradients(maker, False, True, 2)
    assert all(np.array_equal(a, b) for a, b in zip(made, held, strict=True))


@pytest.mark.parametrize("maker", MAKERS)
def test_the_result_is_not_held(maker: str) -> None:
    x, w, v = inputs()
    y = MAKERS[maker](x, w)
    nbytes = y.numel() * 4
    z = F.linear(y, v)
    before = _C.memory_stats()["in_use"]
    del y
    assert before - _C.memory_stats()["in_use"] >= nbytes
    live = _C.live_objects()["storage"]
    z.sum().backward()
    del z
    assert _C.live_objects()["storage"] <= live + 3  # three gradients, and nothing forgotten


def test_two_that_ask_for_one_result() -> None:
    x, w, v = inputs()
    y = F.gelu(x)
    (F.linear(y, w).sum() + F.linear(y, v).square().sum()).backward()
    made = [t.grad.numpy().copy() for t in (x, w, v) if t.grad is not None]
    x, w, v = inputs()
    y = F.gelu(x).clone()
    (F.linear(y, w).sum() + F.linear(y, v).square().sum()).backward()
    held = [t.grad.numpy() for t in (x, w, v) if t.grad is not None]
    assert len(made) == len(held) == 3
    assert all(np.array_equal(a, b) for a, b in zip(made, held, strict=True))


@pytest.mark.parametrize("low", [False, True])
def test_makers_in_a_row(low: bool) -> None:
    """Each of a chain holds what it makes its result from, and the bits are the same."""

    def run(keep: bool) -> list[np.ndarray]:
        def pass_on(t: Tensor) -> Tensor:
            return t.clone() if keep else t

        x, w, v = inputs()
        with paceline.autocast("cpu", paceline.bfloat16, enabled=low):
            y = pass_on(F.layer_norm(x, (WIDTH,), w[0], w[1]))
            y = pass_on(F.linear(y, w, activation="gelu"))
            y = pass_on(F.layer_norm(y, (WIDTH,), w[2], w[3]))
            y = pass_on(F.silu(pass_on(F.gelu(y))))
            z = F.linear(pass_on(F.layer_norm(y, (WIDTH,))), v)
        z.float().square().sum().backward()
        return [t.grad.numpy().copy() for t in (x, w, v) if t.grad is not None]

    made, held = run(False), run(True)
    assert len(made) == len(held) == 3
    assert all(np.array_equal(a, b) for a, b in zip(made, held, strict=True))


def test_a_change_of_the_result_is_refused() -> None:
    x, _, v = inputs()
    y = F.gelu(x)
    z = F.linear(y, v)
    with paceline.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="'linear' was changed in place: shape"):
        z.sum().backward()


def test_a_change_of_what_it_is_made_from_is_refused() -> None:
    x, _, v = inputs()
    h = x * 1
    z = F.linear(F.gelu(h), v)
    with paceline.no_grad():
        h.add_(1)
    with pytest.raises(RuntimeError, match="'gelu' was changed in place"):
        z.sum().backward()
    assert _C.live_objects()["node"] >= 1  # the graph is whole: it goes with z


def test_logits_become_their_gradient_only_where_nobody_sees_it() -> None:
    target = paceline.zeros(ROWS, dtype=paceline.int64)
    x, w, _ = inputs()
    logits = F.linear(x, w)
    kept = logits.detach().numpy().copy()
    F.cross_entropy(logits, target).backward(retain_graph=False)
    assert np.array_equal(logits.detach().numpy(), kept)  # the caller holds it
    held = [t.grad.numpy().copy() for t in (x, w) if t.grad is not None]
    x, w, _ = inputs()
    loss = F.cross_entropy(F.linear(x, w), target)
    loss.backward(retain_graph=True)
    first = [t.grad.numpy().copy() for t in (x, w) if t.grad is not None]
    for t in (x, w):
        t.grad = None
    loss.backward()
    again = [t.grad.numpy() for t in (x, w) if t.grad is not None]
    for a, b, c in zip(held, first, again, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
