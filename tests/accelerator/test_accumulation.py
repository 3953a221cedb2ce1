# SPDX-License-Identifier: Apache-2.0
"""Accumulation windows: when they end, what losses are divided by, and what zero_grad may drop."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from paceline import Accelerator
from paceline.utils import GradientAccumulationPlugin
from ways import run_ways

WORLDS = pytest.mark.parametrize("world", [1, 2, 3])


def _means() -> None:
    """Every step's gradient must be the mean over the samples of its window, on all ranks."""
    import numpy as np

    from paceline import Accelerator
    from paceline.utils import GradientAccumulationPlugin
    from rankside import ARGS, RANK, WORLD
    from ways import torch

    batches, size, every = 7, 4, 3
    values = np.random.default_rng(1).standard_normal((batches * WORLD * size, 5))
    values = values.astype("float32")
    for each_batch in (False, True):
        plugin = GradientAccumulationPlugin(num_steps=every, sync_each_batch=each_batch)
        accelerator = Accelerator(gradient_accumulation_plugin=plugin)
        model = torch.nn.Linear(5, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        inputs = torch.utils.data.TensorDataset(torch.tensor(values))
        data = torch.utils.data.DataLoader(inputs, batch_size=size)
        model, optimizer, data = accelerator.prepare(model, optimizer, data)
        if ARGS["hide"]:  # as for a stream: the end is known only when it comes
            type(data).batches_left = None
        for _ in range(2):
            steps = 0
            for (x,) in data:
                with accelerator.accumulate(model):
                    accelerator.backward(model(x).mean())
                    if accelerator.sync_gradients:
                        first = steps * every * WORLD * size
                        window = values[first : first + every * WORLD * size]
                        expected = window.astype("float64").mean(0)
                        got = model.weight.grad.detach().numpy()[0]
                        assert np.allclose(got, expected, rtol=1e-5, atol=1e-6), (RANK, steps)
                        steps += 1
                    optimizer.step()
                    optimizer.zero_grad()
            assert steps == 3
            assert accelerator.gradient_state.step == 0


@WORLDS
@pytest.mark.parametrize("hide", [False, True], ids=["known-length", "end-seen-late"])
def test_trap_6_every_window_is_its_exact_mean(way: str, world: int, hide: bool) -> None:
    run_ways(way, world, _means, args={"hide": hide}, timeout=90)


def _stream_tail() -> None:
    from paceline import Accelerator
    from ways import torch

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for i in range(6):
                yield torch.tensor([float(i)])

    accelerator = Accelerator(gradient_accumulation_steps=4)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = torch.utils.data.DataLoader(Stream(), batch_size=1)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    seen = []
    for x in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).sum())
            if accelerator.sync_gradients:
                seen.append(model.weight.grad.item())
            optimizer.step()
            optimizer.zero_grad()
    assert seen == [(0 + 1 + 2 + 3) / 4, (4 + 5) / 2], seen


def test_trap_6_a_stream_too(way: str) -> None:
    run_ways(way, 1, _stream_tail)


def _setup(torch: ModuleType, batches: int = 6, **options: Any) -> Any:
    accelerator = Accelerator(**options)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(batches, 1)), batch_size=1
    )
    return accelerator, *accelerator.prepare(model, optimizer, data)


def _run(accelerator: Any, model: Any, optimizer: Any, data: Any) -> tuple[list[bool], list[float]]:
    synced, grads = [], []
    for (x,) in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).sum())
            if accelerator.sync_gradients:
                grads.append(model.weight.grad.item())
            optimizer.step()
            optimizer.zero_grad()
        synced.append(accelerator.sync_gradients)
    return synced, grads


def test_accelerates_under_scaling_by_name(torch: ModuleType) -> None:
    plugin = GradientAccumulationPlugin(num_steps=4, scale_last_window=False)
    synced, grads = _run(*_setup(torch, gradient_accumulation_plugin=plugin))
    assert synced == [False, False, False, True, False, True]
    assert grads == [1.0, 0.5]


def test_without_sync_with_dataloader_windows_span_epochs(torch: ModuleType) -> None:
    plugin = GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)
    parts = _setup(torch, gradient_accumulation_plugin=plugin)
    assert _run(*parts) == ([False, False, False, True, False, False], [1.0])
    assert _run(*parts) == ([False, True, False, False, False, True], [1.0, 1.0])


def test_an_epoch_left_early_goes_on_in_the_next_one(torch: ModuleType) -> None:
    accelerator, model, optimizer, data = _setup(torch, gradient_accumulation_steps=4)
    for i, (x,) in enumerate(data):
        with accelerator.accumulate(model):
            accelerator.backward(model(x).sum())
            optimizer.step()
        if i == 4:  # the first of a window that looked two batches long
            break
    synced, grads = _run(accelerator, model, optimizer, data)
    assert synced == [False, False, True, False, False, True]
    assert grads[1] == 1.0


def test_without_a_loader_windows_are_counted(torch: ModuleType) -> None:
    accelerator, model, optimizer, _ = _setup(torch, gradient_accumulation_steps=2)
    batches = [(torch.ones(1, 1),)] * 4
    assert _run(accelerator, model, optimizer, batches) == ([False, True] * 2, [1.0, 1.0])


def test_outside_accumulate_a_loss_is_divided_by_the_steps(torch: ModuleType) -> None:
    accelerator, model, _, _ = _setup(torch, gradient_accumulation_steps=4)
    accelerator.backward(model(torch.ones(1, 1)).sum())
    assert model.weight.grad.item() == 0.25
    assert accelerator.sync_gradients


def test_row_12_each_set_of_models_counts_for_itself(torch: ModuleType) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    first, second = accelerator.prepare(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    seen = []
    for _ in range(4):
        for model in (first, second):
            with accelerator.accumulate(model):
                seen.append(accelerator.sync_gradients)
    assert seen == [False, False, True, True] * 2


def test_several_models_in_one_window(torch: ModuleType) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    first, second = accelerator.prepare(
        torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    )
    for _ in range(2):
        with accelerator.accumulate(first, second):
            accelerator.backward((first(torch.ones(1, 1)) + second(torch.ones(1, 1))).sum())
    assert accelerator.sync_gradients
    assert first.weight.grad.item() == second.weight.grad.item() == 1.0


def test_a_block_inside_a_block_counts_nothing(torch: ModuleType) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    first, second = accelerator.prepare(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    seen = []
    for _ in range(2):
        with accelerator.accumulate(first), accelerator.accumulate(second):
            seen.append(accelerator.sync_gradients)
    assert seen == [False, True]


@pytest.mark.parametrize("place", ["first", "last"])
def test_zero_grad_may_stand_before_or_after(torch: ModuleType, place: str) -> None:
    accelerator, model, optimizer, data = _setup(torch, gradient_accumulation_steps=3)
    grads = []
    for _ in range(2):
        for (x,) in data:
            with accelerator.accumulate(model):
                if place == "first":
                    optimizer.zero_grad()
                accelerator.backward(model(x).sum())
                if accelerator.sync_gradients:
                    grads.append(model.weight.grad.item())
                optimizer.step()
                if place == "last":
                    optimizer.zero_grad()
    assert grads == pytest.approx([1.0] * 4)


def test_a_window_can_be_thrown_away(torch: ModuleType) -> None:
    accelerator, model, optimizer, _ = _setup(torch, gradient_accumulation_steps=2)
    for _ in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 1)).sum())
    with accelerator.accumulate(model):
        pass
    with accelerator.accumulate(model):
        accelerator.backward(model(torch.ones(1, 1)).sum())
        optimizer.zero_grad()
    assert model.weight.grad is None


def test_step_and_zero_grad_wait_for_the_end_of_the_window(torch: ModuleType) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    before = model.weight.item()
    with accelerator.accumulate(model):
        accelerator.backward(model(torch.ones(1, 1)).sum())
        optimizer.step()
        optimizer.zero_grad()
    assert model.weight.item() == before
    assert model.weight.grad.item() == 0.5
    with accelerator.accumulate(model):
        accelerator.backward(model(torch.ones(1, 1)).sum())
        optimizer.step()
        optimizer.zero_grad()
    assert model.weight.item() == before - 1.0
    assert model.weight.grad is None


def test_trap_2_an_argument_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, torch: ModuleType
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    parts = _setup(torch, gradient_accumulation_steps=3)
    assert _run(*parts)[0] == [False, False, True] * 2


def test_trap_17_the_environment_reaches_the_windows(
    monkeypatch: pytest.MonkeyPatch, torch: ModuleType
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    synced, grads = _run(*_setup(torch))
    assert synced == [False, False, True] * 2
    assert grads == pytest.approx([1.0, 1.0])


def test_accumulate_with_one_step_says_so_once(
    torch: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    _run(*_setup(torch))
    assert capfd.readouterr().err.count("gradient_accumulation_steps is 1") == 1
    _run(*_setup(torch, gradient_accumulation_steps=1))
    assert "gradient_accumulation_steps is 1" not in capfd.readouterr().err


def _no_sync() -> None:
    from paceline import Accelerator
    from rankside import RANK
    from ways import torch

    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
    mine = torch.full((1, 1), float(RANK))  # gradients 0 and 1; their mean is 0.5
    grad = lambda: model.weight.grad.item()  # noqa: E731

    with accelerator.no_sync(model):
        accelerator.backward(model(mine).sum())
        assert grad() == RANK
        with accelerator.no_sync(model):
            pass
        accelerator.backward(model(mine).sum())
        assert grad() == 2 * RANK, "the inner block must not end the outer one"
    accelerator.backward(model(mine).sum())
    assert grad() == 1.5

    model.weight.grad = None
    with accelerator.no_sync(model):
        accelerator.backward(model(mine).sum())
        second = model(mine).sum()
    with Accelerator.trigger_sync_in_backward(model):
        accelerator.backward(second)
    assert grad() == 1.0

    model.weight.grad = None
    with accelerator.no_sync(model), Accelerator.trigger_sync_in_backward(model):
        accelerator.backward(model(mine).sum())
    assert grad() == 0.5
    with Accelerator.trigger_sync_in_backward(torch.nn.Linear(1, 1)):
        pass


def test_no_sync_and_trigger_sync_in_backward(way: str) -> None:
    run_ways(way, 2, _no_sync)


def _each_batch() -> None:
    from paceline import Accelerator
    from paceline.utils import GradientAccumulationPlugin
    from rankside import RANK
    from ways import torch

    for each in (False, True):
        plugin = GradientAccumulationPlugin(num_steps=2, sync_each_batch=each)
        accelerator = Accelerator(gradient_accumulation_plugin=plugin)
        model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.full((1, 1), float(RANK))).sum())
        assert model.weight.grad.item() == (0.25 if each else 0.5 * RANK)
        assert not accelerator.sync_gradients
        accelerator.free_memory()


def test_sync_each_batch_reduces_before_the_window_ends(way: str) -> None:
    run_ways(way, 2, _each_batch)
