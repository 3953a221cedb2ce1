# SPDX-License-Identifier: Apache-2.0
"""A NaN or Inf in a loss or a gradient on a GPU is named, though nobody waits for the GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

import paceline
from paceline import Accelerator, nn, optim
from paceline.utils import NonFiniteKwargs


@pytest.fixture
def parts() -> Iterator[Any]:
    accelerator = Accelerator()
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    yield accelerator, *accelerator.prepare(model, optim.AdamW(model.parameters(), lr=0.1))
    accelerator.end_training()


def take_step(parts: Any, at: int | None = None, loss_is: float = 1.0) -> None:
    """One step; parameter `at` gets an infinite gradient from a finite loss."""
    accelerator, model, optimizer = parts
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    loss = model(paceline.ones(1, 2, device=accelerator.device)).sum() * loss_is
    if at is not None:
        loss = loss + (params[at] - params[at].detach()).sum().sqrt()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    with paceline.no_grad():
        for p, old in zip(params, before, strict=True):
            p.copy_(old)


@pytest.mark.parametrize(("at", "name"), [(0, "0.weight"), (2, "1.weight"), (3, "1.bias")])
def test_the_first_parameter_is_named(
    parts: Any, capfd: pytest.CaptureFixture[str], at: int, name: str
) -> None:
    take_step(parts)
    take_step(parts, at)
    paceline.cuda.synchronize()
    take_step(parts)
    assert capfd.readouterr().err == (
        "paceline: warning: step 2: the first parameter with NaN or Inf in its gradient is "
        f"{name} (seen at step 3)\n"
    )


def test_a_loss_is_named(parts: Any, capfd: pytest.CaptureFixture[str]) -> None:
    take_step(parts, loss_is=math.nan)
    parts[0].free_memory()
    assert capfd.readouterr().err == (
        "paceline: warning: step 1: the loss of rank 0 is nan; the first parameter with NaN or Inf "
        "in its gradient is 0.weight (seen at step 1)\n"
    )


def test_the_last_step_is_told_at_the_end(parts: Any, capfd: pytest.CaptureFixture[str]) -> None:
    take_step(parts, 1)
    parts[0].end_training()
    assert "step 1: the first parameter with NaN or Inf in its gradient is 0.bias" in (
        capfd.readouterr().err
    )


def test_a_step_can_be_refused(capfd: pytest.CaptureFixture[str]) -> None:
    accelerator = Accelerator(kwargs_handlers=[NonFiniteKwargs(action="skip")])
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    parts = (accelerator, *accelerator.prepare(model, optim.SGD(model.parameters(), lr=0.1)))
    take_step(parts, 2)
    assert accelerator.optimizer_step_was_skipped
    assert "is 1.weight; the step is left out" in capfd.readouterr().err
    take_step(parts)
    assert not accelerator.optimizer_step_was_skipped
