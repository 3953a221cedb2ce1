# SPDX-License-Identifier: Apache-2.0
"""Prepared schedulers and optimizers: how far a call steps, and warnings about wrong lengths."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from paceline import Accelerator
from paceline.scheduler import AcceleratedScheduler
from paceline.training.schedule_length import ScheduleLength, length_of
from paceline.utils import GradientAccumulationPlugin
from ways import run_ways


def _how_far() -> None:
    from paceline import Accelerator
    from paceline.utils import SchedulerKwargs
    from rankside import WORLD
    from ways import torch

    def rate(**options):  # type: ignore[no-untyped-def]
        accelerator = Accelerator(**options)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        accelerator.backward(model(torch.ones(1, 1)).sum())
        optimizer.step()
        scheduler.step()
        return scheduler.get_last_lr()[0]

    assert rate() == 0.5**WORLD, "once per process, as documented"
    assert rate(kwargs_handlers=[SchedulerKwargs(step_per_process=False)]) == 0.5
    assert rate(step_scheduler_with_optimizer=False) == 0.5
    assert rate(split_batches=True) == 0.5


@pytest.mark.parametrize("world", [1, 2, 3])
def test_trap_12_once_per_process_or_once_per_step(way: str, world: int) -> None:
    run_ways(way, world, _how_far, timeout=90)


def _setup(torch: ModuleType, **options: Any) -> Any:
    accelerator = Accelerator(**options)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def test_a_schedule_waits_for_the_window(torch: ModuleType) -> None:
    accelerator, model, optimizer, scheduler = _setup(torch, gradient_accumulation_steps=2)
    rates = []
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 1)).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == [1.0, 0.5, 0.5, 0.25]
    assert scheduler._step_count == 5, "skipped calls are counted"


def test_without_adjusting_skipped_calls_are_not_counted(torch: ModuleType) -> None:
    plugin = GradientAccumulationPlugin(num_steps=2, adjust_scheduler=False)
    accelerator, model, _, scheduler = _setup(torch, gradient_accumulation_plugin=plugin)
    with accelerator.accumulate(model):
        scheduler.step()
    assert scheduler._step_count == 1


def test_not_tied_to_the_optimizer_every_call_is_a_step(torch: ModuleType) -> None:
    options = {"gradient_accumulation_steps": 2, "step_scheduler_with_optimizer": False}
    accelerator, model, optimizer, scheduler = _setup(torch, **options)
    optimizer.optimizer.step()  # PyTorch warns of schedules that are ahead of their optimizer
    with accelerator.accumulate(model):
        scheduler.step()
    assert scheduler.get_last_lr() == [0.5]


class _OneCycle:
    """Stands for a schedule that cannot be driven past its end."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._step_count = 1
        self.last_epoch = 0

    def step(self) -> None:
        if self.last_epoch >= self.total_steps:
            raise ValueError("tried to step too often")
        self.last_epoch += 1
        self._step_count += 1


def test_a_schedule_of_fixed_length_is_not_driven_past_its_end() -> None:
    inner = _OneCycle(5)
    scheduler = AcceleratedScheduler(inner, [], Accelerator().gradient_state, 3)
    for _ in range(4):
        scheduler.step()
    assert inner.last_epoch == 5


# --- lengths ------------------------------------------------------------------------------------


class _Loader:
    """A prepared loader of two processes: 100 samples, 10 in a batch."""

    batch_size = 10
    total_dataset_length = 100

    def __len__(self) -> int:
        return 5


def _judged(total: int, per_call: int, made_before: bool, every: int = 1) -> list[str]:
    said: list[str] = []
    length = ScheduleLength(per_call, 2, lambda: every, said.append)
    length.judge(_OneCycle(total), [_Loader()], made_before)
    return said


def test_row_7_a_length_from_the_prepared_loader_is_noticed() -> None:
    (line,) = _judged(15, 2, False)
    assert "the schedule's 15 steps look like those of the prepared loader" in line
    assert "Give it 30 steps" in line
    assert "SchedulerKwargs(step_per_process=False)" in line


def test_row_7_a_length_from_the_loader_before_prepare_is_noticed() -> None:
    (line,) = _judged(30, 1, True)
    assert "look like those of the loader before prepare()" in line
    assert "Give it 15 steps" in line


@pytest.mark.parametrize(
    ("total", "per_call", "made_before", "every"),
    [
        (30, 2, True, 1),  # the documented way
        (15, 1, False, 1),  # the other right one
        (30, 2, False, 1),  # either can be meant
        (7, 2, False, 1),  # nothing of the loader's
        (3, 2, False, 1),  # shorter than an epoch: epochs, perhaps
        (30, 1, False, 1),
        (10, 2, True, 2),
    ],
)
def test_what_may_be_right_is_left_alone(
    total: int, per_call: int, made_before: bool, every: int
) -> None:
    assert _judged(total, per_call, made_before, every) == []


def test_lengths_are_found_where_schedules_keep_them(torch: ModuleType) -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    assert length_of(cosine) == 12
    assert length_of(_OneCycle(7)) == 7
    assert length_of(torch.optim.lr_scheduler.StepLR(optimizer, 3)) is None


def _over_too_early() -> None:
    from paceline import Accelerator
    from ways import torch

    accelerator = Accelerator()
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(24, 1)), batch_size=1
    )
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * len(data))
    scheduler = accelerator.prepare(schedule)
    for _ in range(2):
        for (x,) in data:
            accelerator.backward(model(x).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def test_row_7_a_schedule_that_is_over_too_early_says_so_once(way: str) -> None:
    ranks = run_ways(way, 2, _over_too_early, timeout=90)
    text = "the schedule of 24 steps is over after 12 calls of step()"
    assert [rank.stderr.count(text) for rank in ranks] == [1, 0]
    assert [rank.stderr.count("advances it by 2") for rank in ranks] == [1, 0]


def test_native_schedules_of_transformers_names_have_a_length() -> None:
    from paceline import nn, optim

    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = optim.get_scheduler("linear", optimizer, 2, num_training_steps=9)
    assert length_of(schedule) == 9


# --- optimizers ---------------------------------------------------------------------------------


def test_the_optimizer_passes_everything_on(torch: ModuleType) -> None:
    accelerator, model, optimizer, _ = _setup(torch)
    inner = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert optimizer.scaler is None
    assert accelerator.prepare(optimizer) is optimizer
    before = model.weight.item()

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 1)) * 2).sum()
        accelerator.backward(loss)
        return loss

    assert optimizer.step(closure).item() == pytest.approx(before * 2)
    assert model.weight.item() == pytest.approx(before - 2)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.125
    optimizer.load_state_dict(state)
    assert inner.param_groups[0]["lr"] == 0.125
    assert not optimizer.step_was_skipped
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    assert len(inner.param_groups) == 2
    optimizer.train()  # plain optimizers have no modes
    optimizer.eval()


def test_modes_of_schedule_free_optimizers_are_passed_on(torch: ModuleType) -> None:
    class Modes(torch.optim.SGD):
        mode = ""

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

        def zero_grad(self) -> None:  # an old signature
            self.mode += "0"

    weight = torch.ones(1, requires_grad=True)
    optimizer = Accelerator().prepare(Modes([weight], lr=0.1))
    optimizer.train()
    assert optimizer.mode == "train"
    optimizer.eval()
    optimizer.zero_grad()
    assert optimizer.mode == "eval0"
    with pytest.raises(ValueError, match="`set_to_none` for Optimizer.zero_grad"):
        optimizer.zero_grad(set_to_none=True)


def test_clipping_gives_the_norm(torch: ModuleType) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = accelerator.prepare(torch.nn.Linear(3, 1, bias=False))
    x = torch.tensor([[3.0, 0.0, 4.0]])
    with accelerator.accumulate(model):
        accelerator.backward(model(x).sum())
        assert accelerator.clip_grad_norm_(model.parameters(), 1.0).item() == pytest.approx(2.5)
        accelerator.clip_grad_value_(model.parameters(), 0.1)
    assert model.weight.grad.tolist() == [[1.5, 0.0, 2.0]], "a part of a sum is left alone"
    with accelerator.accumulate(model):
        accelerator.backward(model(x).sum())
        norm = accelerator.clip_grad_norm_((p for p in model.parameters()), 2.5)
        assert norm.item() == pytest.approx(5.0)
        assert model.weight.grad.tolist()[0] == pytest.approx([1.5, 0.0, 2.0], rel=1e-5)
        assert accelerator.clip_grad_norm_(model.weight, 100.0, norm_type=1).item() == (
            pytest.approx(3.5, rel=1e-5)
        )
        accelerator.clip_grad_value_(model.parameters(), 1.75)
        assert model.weight.grad.tolist()[0] == pytest.approx([1.5, 0.0, 1.75], rel=1e-5)
    assert accelerator.clip_grad_norm_([], 1.0).item() == 0.0
