# SPDX-License-Identifier: Apache-2.0
"""The norm is taken in the backward pass where clipping repeats, and nobody can tell.

Every case runs twice: once so that nothing touches the gradients between the backward pass and
clipping, and once with each gradient looked at in between, so that all of them are read again. The
bits must be the same, and who changes a gradient must get the norm of what he made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paceline
from paceline.amp import GradScaler
from paceline.nn.utils import clip_grad_norm_

Change = Callable[[list[Any]], object]


def network() -> tuple[Any, list[Any]]:
    paceline.manual_seed(0)
    nn = paceline.nn
    model = nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 7))
    return model, list(model.parameters())


def nothing(params: list[Any]) -> None:
    pass


def look(params: list[Any]) -> None:
    assert any(p.grad is not None for p in params)
    assert [p.grad for p in params]


def double(params: list[Any]) -> None:
    params[0].grad.mul_(2.0)


def through_numpy(params: list[Any]) -> None:
    params[2].grad.numpy()[:] = 0.25


def replaced(params: list[Any]) -> None:
    params[1].grad = paceline.ones_like(params[1])


def dropped(params: list[Any]) -> None:
    params[3].grad = None


def another_pass(params: list[Any]) -> None:
    (params[0].sum() * 1e-3).backward()


def true_norm(params: list[Any]) -> float:
    found = [p.grad.numpy().astype(np.float64) for p in params if p.grad is not None]
    return float(np.sqrt(sum((g**2).sum() for g in found)))


def trained(between: Change, looks: bool, passes: Callable[[int], int]) -> list[Any]:
    model, params = network()
    optimizer = paceline.optim.AdamW(params, lr=0.01)
    x = paceline.randn(32, 300)
    result: list[Any] = []
    for step in range(5):
        for _ in range(passes(step)):
            (model(x) ** 2).sum().backward()
        between(params)
        if looks:
            look(params)
        result.append(clip_grad_norm_(params, 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return result + [p.detach().numpy().tobytes() for p in params]


@pytest.mark.parametrize(
    "between", [nothing, double, through_numpy, replaced, dropped, another_pass]
)
@pytest.mark.parametrize(
    "passes", [lambda step: 1, lambda step: 3, lambda step: 1 + step % 3], ids=["1", "3", "varies"]
)
def test_an_early_norm_changes_no_bit(between: Change, passes: Callable[[int], int]) -> None:
    assert trained(between, False, passes) == trained(between, True, passes)


@pytest.mark.parametrize("change", [double, through_numpy, replaced, dropped, another_pass])
def test_who_changes_a_gradient_gets_its_norm(change: Change) -> None:
    model, params = network()
    x = paceline.randn(32, 300)
    for _ in range(3):
        (model(x) ** 2).sum().backward()
        change(params)
        norm = clip_grad_norm_(params, 1e30).item()
        assert norm == pytest.approx(true_norm(params), rel=1e-6)
        for p in params:
            p.grad = None


def test_who_holds_a_gradient_through_the_pass_may_change_it_after() -> None:
    model, params = network()
    x = paceline.randn(32, 300)
    for step in range(4):
        held = params[0].grad
        (model(x) ** 2).sum().backward()
        if held is not None:
            held.mul_(3.0)
        del held
        norm = clip_grad_norm_(params, 1e30).item()
        assert norm == pytest.approx(true_norm(params), rel=1e-6), step


def test_a_scaler_finds_what_is_not_finite_in_an_early_norm() -> None:
    model, params = network()
    optimizer = paceline.optim.SGD(params, lr=0.1)
    scaler = GradScaler(init_scale=8.0)
    for step in range(4):
        x = paceline.full((2, 300), float("inf") if step == 2 else 0.5)
        before = params[0].detach().numpy().copy()
        scaler.scale((model(x) ** 2).sum()).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(params, 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert np.array_equal(before, params[0].detach().numpy()) == (step == 2)
        optimizer.zero_grad()
