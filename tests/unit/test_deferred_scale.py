# SPDX-License-Identifier: Apache-2.0
"""Clipping and unscaling may leave their factor with the gradients, and nobody can tell.

Every case runs twice: once with nothing else referring to the gradients, so that the factor waits,
and once with the gradients held, so that it is applied at once. The bits must be the same.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paceline
from paceline.amp import GradScaler
from paceline.nn.utils import clip_grad_norm_, get_total_norm

SHAPES = [(50, 7), (1000,), (3,), ()]
Between = Callable[[list[Any]], object]


def parameters(dtype: Any = paceline.float32) -> list[Any]:
    paceline.manual_seed(0)
    return [paceline.randn(s, dtype=dtype).requires_grad_() for s in SHAPES]


def fill(params: list[Any], times: float = 3.0) -> None:
    for k, p in enumerate(params):
        values = np.random.default_rng(k).standard_normal(tuple(p.shape)) * times
        p.grad = paceline.tensor(values, dtype=p.dtype)


def addresses(params: list[Any]) -> list[int]:
    return [p.grad._data_ptr for p in params]


def at(address: int) -> float:
    return float(ctypes.c_float.from_address(address).value)


def trained(make: Callable[[list[Any]], Any], between: Between, held: bool) -> list[Any]:
    params = parameters()
    optimizer = make(params)
    for _ in range(3):
        fill(params)
        holds = [p.grad for p in params] if held else []
        clip_grad_norm_(params, 0.5)
        between(params)
        optimizer.step()
        del holds
    return [p.detach().numpy().copy() for p in params] + [p.grad.numpy().copy() for p in params]


def nothing(params: list[Any]) -> None:
    pass


def clip_again(params: list[Any]) -> None:
    clip_grad_norm_(params, 0.125)


def read_one(params: list[Any]) -> None:
    assert np.isfinite(params[1].grad.numpy()).all()


def change_one(params: list[Any]) -> None:
    params[0].grad.mul_(2.0)
    clip_grad_norm_(params, 0.25)


def accumulate(params: list[Any]) -> None:
    sum((p * p).sum() for p in params[:2]).backward()


def replace_one(params: list[Any]) -> None:
    params[2].grad = paceline.ones(3)


def through_matmul(params: list[Any]) -> None:
    (paceline.ones(2, 50) @ params[0]).sum().backward()  # writes into the gradient itself


def from_the_leaf_itself(params: list[Any]) -> None:
    params[3].backward()


BETWEEN = [
    nothing,
    from_the_leaf_itself,
    clip_again,
    read_one,
    change_one,
    accumulate,
    replace_one,
    through_matmul,
]
OPTIMIZERS = {
    "AdamW": lambda ps: paceline.optim.AdamW(ps, lr=0.1),
    "Adam": lambda ps: paceline.optim.Adam(ps, lr=0.1, weight_decay=0.1, maximize=True),
    "SGD": lambda ps: paceline.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "plain SGD": lambda ps: paceline.optim.SGD(ps, lr=0.1),
}


@pytest.mark.parametrize("between", BETWEEN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_waiting_changes_no_bit(name: str, between: Between) -> None:
    waited = trained(OPTIMIZERS[name], between, held=False)
    at_once = trained(OPTIMIZERS[name], between, held=True)
    for a, b in zip(waited, at_once, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_factor_waits_and_the_step_leaves_the_memory_alone() -> None:
    params = parameters()
    optimizer = paceline.optim.AdamW(params, lr=0.1)
    fill(params)
    places = addresses(params)
    before = [at(place) for place in places]
    clip_grad_norm_(params, 0.5)
    optimizer.step()
    assert [at(place) for place in places] == before
    norm = float(get_total_norm([p.grad for p in params]))
    assert norm == pytest.approx(0.5, rel=1e-4)
    assert [at(place) for place in places] != before


@pytest.mark.parametrize("view", [
    lambda g: g, lambda g: g[:1], lambda g: g.view(-1), lambda g: g.detach(), lambda g: g.numpy(),
])  # fmt: skip
def test_who_holds_a_gradient_sees_it_clipped(view: Callable[[Any], Any]) -> None:
    params = parameters()
    fill(params)
    held = view(params[1].grad)
    gc.collect()
    before = np.array(held).copy()
    norm = float(clip_grad_norm_(params, 0.5))
    np.testing.assert_allclose(np.array(held), before * (0.5 / norm), rtol=1e-5)


def test_a_gradient_that_was_dropped_takes_its_factor_along() -> None:
    params = parameters()
    fill(params)
    clip_grad_norm_(params, 0.5)
    for p in params:
        p.grad = None
    sum(p.sum() for p in params).backward()
    for p in params:
        np.testing.assert_array_equal(p.grad.numpy(), np.ones(tuple(p.shape), np.float32))


def test_half_gradients_are_clipped_at_once() -> None:
    params = parameters(paceline.bfloat16)
    fill(params)
    norm = float(clip_grad_norm_(params, 0.5))
    assert norm > 1.0
    assert float(get_total_norm([p.grad for p in params])) == pytest.approx(0.5, rel=1e-2)


def test_an_infinite_norm_still_spreads() -> None:
    params = parameters()
    fill(params)
    params[1].grad[3] = float("inf")
    clip_grad_norm_(params, 0.5)
    assert float(params[0].grad.abs().max()) == 0.0
    assert bool(paceline.isnan(params[1].grad[3]))


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("held", [False, True])
def test_unscale_clip_step(held: bool, bad: float | None) -> None:
    params = parameters()
    optimizer = paceline.optim.AdamW(params, lr=0.1)
    scaler = GradScaler(init_scale=1024.0)
    fill(params, 3.0 * 1024.0)
    if bad is not None:
        params[1].grad[7] = bad
    before = [p.detach().numpy().copy() for p in params]
    want = parameters()
    fill(want)
    norm = float(clip_grad_norm_(want, 0.5))
    paceline.optim.AdamW(want, lr=0.1).step()
    holds = [p.grad for p in params] if held else []
    scaler.unscale_(optimizer)
    assert scaler.found_inf(optimizer) == (bad is not None)
    if bad is None:
        assert float(clip_grad_norm_(params, 0.5)) == pytest.approx(norm, rel=1e-6)
    scaler.step(optimizer)
    scaler.update()
    del holds
    for p, w, old in zip(params, want, before, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), old if bad else w.detach().numpy())


def test_float64_squares_that_overflow_are_no_infinite_gradients() -> None:
    p = paceline.ones(4, dtype=paceline.float64).requires_grad_()
    p.grad = paceline.full((4,), 1e200, dtype=paceline.float64)
    scaler = GradScaler(init_scale=2.0)
    optimizer = paceline.optim.SGD([p], lr=1.0)
    scaler.unscale_(optimizer)
    assert not scaler.found_inf(optimizer)
    assert float(p.grad[0]) == 5e199
