# SPDX-License-Identifier: Apache-2.0
"""Gradients that go through GELU inside a product (Note [through GELU], csrc/ops/ops.h).

The oracle's kernels have the fused member, so the path runs here: in bfloat16 it rounds once where
two steps round twice, which shows that it was taken. Wherever somebody else gives to, or sees, the
gradient between, it must be two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from numerics.compare import UNIT, array, assert_close, tensor
from paceline import _C

Tensor = paceline.Tensor
Hidden = Callable[[Tensor, Tensor, Tensor], Tensor]

#: How a program may come by h = gelu_tanh(x w^T + b).
HIDDEN: dict[str, Hidden] = {
    "in linear": lambda x, w, b: F.linear(x, w, b, activation="gelu_tanh"),
    "behind linear": lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
}
ROWS, IN, WIDTH, OUT = (2, 3), 5, 16, 7


@pytest.fixture(autouse=True)
def oracle() -> Iterator[None]:
    _C.use_kernels("ref")
    yield
    _C.use_kernels("cpu")


def inputs(dtype: paceline.dtype) -> list[Tensor]:
    """x, w1, b1, w2, b2 of a two-layer perceptron."""
    rng = np.random.default_rng(7)
    shapes = [(*ROWS, IN), (WIDTH, IN), (WIDTH,), (OUT, WIDTH), (OUT,)]
    return [tensor(rng.standard_normal(s), dtype).requires_grad_() for s in shapes]


def gradients(leaves: list[Tensor]) -> list[np.ndarray]:
    return [array(t.grad) for t in leaves if t.grad is not None]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    assert len(a) == len(b) > 0
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def kept(h: Tensor) -> Tensor:
    """Another node between: nothing is fused over it, and it changes no value."""
    return h.clone()


def passed(h: Tensor) -> Tensor:
    return h


def trained(
    hidden: Hidden, between: Callable[[Tensor], Tensor], dtype: paceline.dtype = paceline.bfloat16
) -> list[np.ndarray]:
    leaves = inputs(dtype)
    x, w1, b1, w2, b2 = leaves
    F.linear(between(hidden(x, w1, b1)), w2, b2).float().square().sum().backward()
    return gradients(leaves)


@pytest.mark.parametrize("name", HIDDEN)
def test_it_is_taken(name: str) -> None:
    """Or the tests below would compare two steps with two steps."""
    assert not same(trained(HIDDEN[name], passed), trained(HIDDEN[name], kept))
    _C.use_kernels("cpu")  # which has no such member: two steps either way
    assert same(trained(HIDDEN[name], passed), trained(HIDDEN[name], kept))


@pytest.mark.parametrize("dtype", [paceline.float64, paceline.float32, paceline.bfloat16], ids=str)
@pytest.mark.parametrize("name", HIDDEN)
def test_the_values_are_those_of_two_steps(name: str, dtype: paceline.dtype) -> None:
    got, want = trained(HIDDEN[name], passed, dtype), trained(HIDDEN[name], kept, dtype)
    unit = UNIT[str(dtype).removeprefix("paceline.")]
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 16 * unit, name)  # a rounding more, carried through a sum


@pytest.mark.parametrize("name", HIDDEN)
def test_against_finite_differences(name: str) -> None:
    leaves = inputs(paceline.float64)
    x, w1, b1, w2, b2 = leaves

    def loss() -> Tensor:
        return F.linear(HIDDEN[name](x, w1, b1), w2, b2).square().sum()

    loss().backward()
    rng, h = np.random.default_rng(1), 1e-6
    for t in leaves:
        assert t.grad is not None
        step = rng.standard_normal(tuple(t.shape))
        with paceline.no_grad():
            values = []
            for sign in (1.0, -1.0):
                t.add_(tensor(sign * h * step, paceline.float64))
                values.append(loss().item())
                t.sub_(tensor(sign * h * step, paceline.float64))
        slope = float((array(t.grad) * step).sum())
        assert abs((values[0] - values[1]) / (2 * h) - slope) <= 1e-6 * max(1.0, abs(slope))


@pytest.mark.parametrize("name", HIDDEN)
def test_against_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    got = trained(HIDDEN[name], passed, paceline.float32)
    there = [torch.tensor(array(t), requires_grad=True) for t in inputs(paceline.float32)]
    x, w1, b1, w2, b2 = there
    h = torch.nn.functional.gelu(torch.nn.functional.linear(x, w1, b1), approximate="tanh")
    torch.nn.functional.linear(h, w2, b2).square().sum().backward()
    for a, b in zip(got, there, strict=True):
        assert_close(a, b.grad.numpy(), 64 * UNIT["float32"], name)


# ---- Where it would be wrong, two steps it is ----------------------------------------------------

Scene = Callable[[Hidden, Callable[[Tensor], Tensor]], list[np.ndarray]]


def a_second_consumer(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = hidden(x, w1, b1)
    y = F.linear(between(h), w2, b2).square().sum()
    (y + h.sum()).backward()
    return gradients(leaves)


def two_linear_layers(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = hidden(x, w1, b1)
    a, b = F.linear(between(h), w2, b2), F.linear(between(h), w2 * 2)
    (a.square().sum() + b.sum()).backward()
    return gradients(leaves)


def a_root_of_its_own(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = hidden(x, w1, b1)
    y = F.linear(between(h), w2, b2)
    paceline.autograd.backward([y.square().sum(), h], [None, paceline.ones_like(h)])
    return gradients(leaves)


def asked_for(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    x, w1, b1, w2, b2 = inputs(paceline.float32)
    h = hidden(x, w1, b1)
    loss = F.linear(between(h), w2, b2).square().sum()
    return [array(g) for g in paceline.autograd.grad(loss, [h, w1, x, b2]) if g is not None]


def dropped_out(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    paceline.manual_seed(3)
    h = between(F.dropout(between(hidden(x, w1, b1)), 0.5, training=True))
    F.linear(h, w2, b2).square().sum().backward()
    return gradients(leaves)


def cast_between(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = between(between(hidden(x, w1, b1)).double())
    F.linear(h, w2.double(), b2.double()).square().sum().backward()
    return gradients(leaves)


def viewed(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = between(hidden(x, w1, b1)).reshape(-1, WIDTH)[1:]
    F.linear(h, w2, b2).square().sum().backward()
    return gradients(leaves)


def changed_in_place(hidden: Hidden, between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    leaves = inputs(paceline.float32)
    x, w1, b1, w2, b2 = leaves
    h = between(hidden(x, w1, b1))
    h.mul_(2.0)
    F.linear(h, w2, b2).square().sum().backward()
    return gradients(leaves)


SCENES: list[Scene] = [
    a_second_consumer, two_linear_layers, a_root_of_its_own, asked_for, dropped_out, cast_between,
    viewed, changed_in_place,
]  # fmt: skip


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", HIDDEN)
def test_two_steps_where_more_is_wanted_of_the_gradient(name: str, scene: Scene) -> None:
    """A slope too many or too few is no matter of rounding."""
    got, want = scene(HIDDEN[name], passed), scene(HIDDEN[name], kept)
    assert len(got) == len(want) > 3
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 64 * UNIT["float32"], name)


# ---- Where it is right ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", HIDDEN)
def test_a_graph_that_is_kept_gives_the_same_again(name: str) -> None:
    leaves = inputs(paceline.bfloat16)
    x, w1, b1, w2, b2 = leaves
    h = HIDDEN[name](x, w1, b1)
    y = F.linear(h, w2, b2).float().square().sum()
    found = []
    for _ in range(2):
        y.backward(retain_graph=True)
        found.append(gradients(leaves))
        for t in leaves:
            t.grad = None
    assert same(*found)
    # What one pass found fused says nothing to the next, in which h has two that give to it.
    (y + h.float().sum()).backward()
    for a, b in zip(gradients(leaves), a_second_consumer(HIDDEN[name], kept), strict=True):
        assert_close(a, b, 16 * UNIT["bfloat16"], name)


@pytest.mark.parametrize("name", HIDDEN)
def test_gradients_add_up(name: str) -> None:
    """Into gradients that are there, as over the steps of an accumulation."""

    def run(between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
        leaves = inputs(paceline.float32)
        x, w1, b1, w2, b2 = leaves
        for _ in range(3):
            F.linear(between(HIDDEN[name](x, w1, b1)), w2, b2).square().sum().backward()
        return gradients(leaves)

    for a, b in zip(run(passed), run(kept), strict=True):
        assert_close(a, b, 32 * UNIT["float32"], name)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("name", HIDDEN)
def test_under_autocast(name: str, first: bool, second: bool) -> None:
    """Each layer in bf16 or fp32: what the gradient is computed in, and where casts lie."""

    def run(between: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
        leaves = inputs(paceline.float32)
        x, w1, b1, w2, b2 = leaves
        with paceline.autocast("cpu", paceline.bfloat16, enabled=first):
            h = between(HIDDEN[name](x, w1, b1))
        with paceline.autocast("cpu", paceline.bfloat16, enabled=second):
            y = F.linear(h if second or not first else h.float(), w2, b2)
        y.float().square().sum().backward()
        return gradients(leaves)

    for a, b in zip(run(passed), run(kept), strict=True):
        unit = UNIT["bfloat16" if first or second else "float32"]
        assert_close(a, b, 16 * unit, name)


def test_a_change_of_what_gelu_took_is_refused() -> None:
    x, w1, b1, w2, b2 = inputs(paceline.float32)
    a = F.linear(x, w1, b1)
    y = F.linear(F.gelu(a, approximate="tanh"), w2, b2).sum()
    with paceline.no_grad():
        a.add_(1)
    with pytest.raises(RuntimeError, match="gradient of 'gelu_tanh' was changed in place"):
        y.backward()


def test_a_pass_that_fails_leaves_the_graph_as_it_was() -> None:
    leaves = inputs(paceline.bfloat16)
    x, w1, b1, w2, b2 = leaves
    h = HIDDEN["in linear"](x, w1, b1)
    y = F.linear(h, w2, b2).float().square().sum()
    for at in range(1, 200):
        _C.fail_alloc_at(at, False)
        try:
            y.backward(retain_graph=True)
        except MemoryError:
            pass
        else:
            break
        finally:
            _C.fail_alloc_at(0, False)
    else:
        pytest.fail("no pass went through")
    for t in leaves:
        t.grad = None
    y.backward()
    assert same(gradients(leaves), trained(HIDDEN["in linear"], passed))
