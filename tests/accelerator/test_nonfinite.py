# SPDX-License-Identifier: Apache-2.0
"""G7: a NaN or Inf in a loss or a gradient is named, and all ranks do the same about it."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest

from paceline import Accelerator
from paceline.errors import NonFiniteError
from paceline.utils import NonFiniteKwargs
from ways import run_ways


def _setup(torch: ModuleType, action: str | None = None, kind: str = "AdamW") -> Any:
    handlers = [] if action is None else [NonFiniteKwargs(action=action)]
    accelerator = Accelerator(kwargs_handlers=handlers)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer)


def _step(torch: ModuleType, parts: Any, at: int | None, clip: bool = False) -> None:
    """Take a step; parameter `at` gets an infinite gradient from a finite loss, -1: a NaN loss."""
    accelerator, model, optimizer = parts
    params = list(model.parameters())
    loss = model(torch.ones(1, 2)).sum()
    if at == -1:
        loss = loss * math.nan
    elif at is not None:  # the root's slope at 0 is infinite, its value is 0
        loss = loss + (params[at] - params[at].detach()).sum().sqrt()
    accelerator.backward(loss)
    if clip:
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize(("at", "name"), [(0, "0.weight"), (2, "1.weight"), (3, "1.bias")])
def test_g7_the_first_parameter_is_named(
    torch: ModuleType,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    clip: bool,
    at: int,
    name: str,
) -> None:
    parts = _setup(torch, kind=kind)
    _step(torch, parts, None)
    assert "NaN" not in capfd.readouterr().err
    _step(torch, parts, at, clip)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"step 2: the first parameter with NaN or Inf in its gradient on rank 0 is {name}" in said
    )


def test_g7_the_loss_is_named_and_few_lines_are_written(
    torch: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = _setup(torch)
    for _ in range(12):
        _step(torch, parts, -1)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2, "the first and the tenth"
    assert "step 1: the loss of rank 0 is nan; the first parameter" in lines[0]
    assert "step 10: " in lines[1]


def test_off_says_nothing(torch: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    parts = _setup(torch, "off")
    _step(torch, parts, -1)
    assert capfd.readouterr().err == ""


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, torch: ModuleType) -> None:
    monkeypatch.setenv("PACELINE_NONFINITE", "raise")
    with pytest.raises(NonFiniteError, match="1.bias"):
        _step(torch, _setup(torch), 3)


def test_skip_leaves_weights_and_schedule_alone(
    torch: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = _setup(torch, "skip")
    accelerator, model, optimizer = parts
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    scheduler = accelerator.prepare(scheduler)
    before = [p.detach().tolist() for p in model.parameters()]
    _step(torch, parts, 0)
    scheduler.step()
    assert accelerator.optimizer_step_was_skipped
    assert [p.detach().tolist() for p in model.parameters()] == before
    assert scheduler.get_last_lr() == [0.1]
    assert "the step is left out on all ranks" in capfd.readouterr().err
    _step(torch, parts, None)
    assert not accelerator.optimizer_step_was_skipped


def _together() -> None:
    import math

    from paceline import Accelerator
    from paceline.errors import NonFiniteError
    from paceline.utils import NonFiniteKwargs
    from rankside import RANK
    from ways import torch

    for action in ("warn", "skip", "raise"):
        accelerator = Accelerator(kwargs_handlers=[NonFiniteKwargs(action=action)])
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        for bad in (False, True):
            before = model.weight.detach().tolist()
            loss = model(torch.ones(1, 2)).sum()
            accelerator.backward(loss * math.inf if bad and RANK == 1 else loss)
            try:
                optimizer.step()
                raised = ""
            except NonFiniteError as error:
                raised = str(error)
            assert bool(raised) == (bad and action == "raise")
            if raised:
                assert raised.startswith("[optimizer.step] step 2: the loss of rank 1 is"), raised
                assert "weight; the parameters are those from before this step" in raised
            assert optimizer.step_was_skipped == (bad and action == "skip")
            if bad and action != "warn":
                assert model.weight.detach().tolist() == before
            optimizer.zero_grad()
        accelerator.free_memory()


def test_g7_one_bad_rank_is_named_and_all_act_alike(way: str) -> None:
    ranks = run_ways(way, 2, _together, timeout=90)
    lines = [line for rank in ranks for line in rank.stderr.splitlines() if "warning" in line]
    assert len(lines) == 2, lines
    assert all("step 2: the loss of rank 1 is" in line for line in lines)
    assert ranks[1].stderr.count("warning") == 0, "rank 0 speaks for all"


def _gradient_of_one_rank() -> None:
    from paceline import Accelerator
    from rankside import ARGS, RANK
    from ways import torch

    accelerator = Accelerator()
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    loss = model(torch.ones(1, 2)).sum()
    if RANK == 1:
        p = list(model.parameters())[ARGS["at"]]
        loss = loss + (p - p.detach()).sum().sqrt()
    accelerator.backward(loss)
    optimizer.step()


@pytest.mark.parametrize(("at", "name"), [(0, "0.weight"), (2, "1.weight"), (3, "1.bias")])
def test_g7_a_gradient_of_one_rank(way: str, at: int, name: str) -> None:
    ranks = run_ways(way, 2, _gradient_of_one_rank, args={"at": at}, timeout=90)
    lines = [line for rank in ranks for line in rank.stderr.splitlines() if "warning" in line]
    assert len(lines) == 1, lines
    assert lines[0].endswith(f"is {name}")
