# SPDX-License-Identifier: Apache-2.0
"""fp16: autocast, the gradient scaler next to PyTorch's, and steps left out on all ranks."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest

from paceline import Accelerator
from paceline.amp import GradScaler
from paceline.utils import GradScalerKwargs
from ways import run_ways


def _weight(torch: ModuleType, value: float = 1.0) -> tuple[Any, Any]:
    weight = torch.full((3,), value, requires_grad=True)
    return weight, torch.optim.SGD([weight], lr=0.5)


# --- GradScaler by itself -----------------------------------------------------------------------


def test_defaults_are_pytorchs() -> None:
    scaler = GradScaler()
    assert scaler.is_enabled()
    assert scaler.state_dict() == {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 0,
    }


@pytest.mark.parametrize("seed", range(4))
def test_same_as_pytorchs_scaler(torch: ModuleType, seed: int) -> None:
    theirs_library = pytest.importorskip("torch")
    import random

    options: dict[str, Any] = {
        "init_scale": 1024.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3,
    }  # fmt: skip
    ours = GradScaler("cpu", **options)
    theirs = theirs_library.amp.GradScaler("cpu", **options)
    a, ours_optimizer = _weight(torch)
    b, theirs_optimizer = _weight(theirs_library)
    draw = random.Random(seed)
    for _ in range(30):
        bad = draw.random() < 0.25
        factor = draw.choice([math.inf, -math.inf, math.nan]) if bad else draw.random()
        for scaler, weight, optimizer, library in (
            (ours, a, ours_optimizer, torch),
            (theirs, b, theirs_optimizer, theirs_library),
        ):
            optimizer.zero_grad()
            scaler.scale((weight * library.tensor([1.0, factor, 2.0])).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert ours.get_scale() == theirs.get_scale()
        assert ours.state_dict() == theirs.state_dict()
        assert a.detach().tolist() == b.detach().tolist()


def test_inf_leaves_the_weights_bit_unchanged(torch: ModuleType) -> None:
    weight, optimizer = _weight(torch)
    scaler = GradScaler()
    before = weight.detach().tolist()
    for expected in (32768.0, 16384.0):
        scaler.scale((weight * torch.tensor([1.0, math.inf, 1.0])).sum()).backward()
        assert scaler.step(optimizer) is None
        assert scaler.found_inf(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert scaler.get_scale() == expected
    assert weight.detach().tolist() == before


def test_scale_of_nested_and_disabled(torch: ModuleType) -> None:
    scaler = GradScaler(init_scale=8.0)
    one = torch.ones(1)
    pair = scaler.scale([one, (one, one)])
    assert isinstance(pair, list)
    assert isinstance(pair[1], tuple)
    assert [t.item() for t in (pair[0], *pair[1])] == [8.0] * 3
    with pytest.raises(ValueError, match=r"\[GradScaler.scale\] got int, expected a Tensor"):
        scaler.scale(3)
    off = GradScaler(enabled=False)
    weight, optimizer = _weight(torch)
    assert off.scale(weight) is weight
    assert off.get_scale() == 1.0
    assert off.state_dict() == {}
    (weight * math.inf).sum().backward()
    off.unscale_(optimizer)
    off.step(optimizer)
    off.update()
    assert not math.isfinite(weight[0].item()), "a disabled scaler steps in any case"


def test_misuse_says_what_is_wrong(torch: ModuleType) -> None:
    weight, optimizer = _weight(torch)
    scaler = GradScaler()
    with pytest.raises(RuntimeError, match="No inf checks were recorded prior to update"):
        scaler.update()
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad.tolist() == [1.0] * 3
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step"):
        scaler.unscale_(optimizer)
    scaler.update()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)
    with pytest.raises(ValueError, match="growth_factor: got 1.0, expected above 1.0"):
        GradScaler(growth_factor=1.0)
    with pytest.raises(ValueError, match="backoff_factor: got 1.0, expected below 1.0"):
        GradScaler(backoff_factor=1.0)
    with pytest.raises(RuntimeError, match="The source state dict is empty"):
        scaler.load_state_dict({})


def test_row_15_fp16_parameters_are_refused_with_a_reason(torch: ModuleType) -> None:
    weight = torch.ones(2, dtype=torch.float16, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = GradScaler()
    scaler.scale(weight.float().sum()).backward()
    with pytest.raises(ValueError, match="keep the parameters in fp32"):
        scaler.unscale_(optimizer)


def test_settings_state_and_a_new_scale(torch: ModuleType) -> None:
    scaler = GradScaler(growth_interval=1, init_scale=2.0**127, growth_factor=4.0)
    weight, optimizer = _weight(torch)
    scaler.scale(weight.sum() * 0.0).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127, "it does not grow to infinity"
    scaler.update(torch.tensor(16.0))
    assert scaler.get_scale() == 16.0
    scaler.set_growth_factor(3.0)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(7)
    again = GradScaler()
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict()
    assert (again.get_growth_factor(), again.get_backoff_factor()) == (3.0, 0.25)
    assert again.get_growth_interval() == 7
    assert "scale=16.0" in repr(again)


# --- through Accelerator ------------------------------------------------------------------------


def _train(torch: ModuleType, precision: str, **options: Any) -> list[float]:
    torch.manual_seed(3)
    accelerator = Accelerator(mixed_precision=precision, **options)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    x = torch.randn(64, 8)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(40):
        loss = ((model(x) - y) ** 2).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_trap_5_fp16_computes_in_fp16_and_scales(torch: ModuleType) -> None:
    accelerator = Accelerator(mixed_precision="fp16")
    model = accelerator.prepare(torch.nn.Linear(4, 4))
    assert accelerator.mixed_precision == "fp16"
    assert accelerator.native_amp
    assert accelerator.scaler.get_scale() == 65536.0
    seen = []

    class Inside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            y = self.linear(x)
            seen.append(y.dtype)
            return y

    inside = accelerator.prepare(Inside())
    out = inside(torch.ones(2, 4))
    assert seen == [torch.float16]
    assert out.dtype is torch.float32, "outputs come in fp32"
    assert model(torch.ones(1, 4)).dtype is torch.float32
    with accelerator.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float16


def test_products_of_fp16_are_summed_in_fp32(torch: ModuleType) -> None:
    autocast = torch.autocast("cpu", dtype=torch.float16)
    with autocast:  # fp16 cannot hold 2049, so that a sum of ones in fp16 ends at 2048
        product = torch.ones(1, 4096) @ torch.ones(4096, 1)
        linear = torch.nn.functional.linear(torch.ones(1, 4096), torch.ones(1, 4096))
    assert product.dtype is linear.dtype is torch.float16
    assert product.item() == linear.item() == 4096.0


def test_fp16_trains_as_fp32_does(torch: ModuleType) -> None:
    # A factor at which no step overflows: each one left out would be one behind.
    handlers = [GradScalerKwargs(init_scale=1024.0)]
    full, half = _train(torch, "no"), _train(torch, "fp16", kwargs_handlers=handlers)
    assert half[-1] < 0.2 * half[0]
    # fp16 keeps 11 bits: losses agree to about 2^-10 a step, and 40 steps add up.
    assert half == pytest.approx(full, rel=0.05)


def test_fp16_finds_gradients_that_fp16_alone_would_lose(torch: ModuleType) -> None:
    lost = []
    for enabled in (True, False):
        options = GradScalerKwargs(enabled=enabled)
        accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[options])
        assert (accelerator.scaler is not None) == enabled
        model = torch.nn.Linear(1, 1, bias=False)
        first = torch.nn.Linear(1, 1, bias=False)
        both = torch.nn.Sequential(first, model)
        optimizer = torch.optim.SGD(both.parameters(), lr=0.0)
        both, optimizer = accelerator.prepare(both, optimizer)
        # The gradient of the product between the layers is 1e-8: zero in fp16 unless scaled.
        accelerator.backward(both(torch.ones(1, 1)).sum() * 1e-8)
        accelerator.unscale_gradients()
        lost.append(first.weight.grad.item() == 0.0)
    assert lost == [False, True]


def test_kwargs_reach_the_scaler() -> None:
    handler = GradScalerKwargs(init_scale=128.0, growth_interval=5)
    scaler = Accelerator(mixed_precision="fp16", kwargs_handlers=[handler]).scaler
    assert (scaler.get_scale(), scaler.get_growth_interval()) == (128.0, 5)
    assert Accelerator(mixed_precision="bf16").scaler is None


def test_growth_after_the_interval_and_norm_is_unscaled(torch: ModuleType) -> None:
    handler = GradScalerKwargs(init_scale=64.0, growth_interval=2)
    accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[handler])
    weight, optimizer = _weight(torch)
    optimizer = accelerator.prepare(optimizer)
    scales = []
    for _ in range(4):
        accelerator.backward(weight.sum())
        norm = accelerator.clip_grad_norm_((p for p in [weight]), 100.0)
        assert norm.item() == pytest.approx(3**0.5)
        assert accelerator.clip_grad_norm_([weight], 100.0).item() == pytest.approx(3**0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert not accelerator.optimizer_step_was_skipped
        scales.append(accelerator.scaler.get_scale())
    assert scales == [64.0, 128.0, 128.0, 256.0]


def test_two_optimizers_share_one_factor_for_a_whole_iteration(torch: ModuleType) -> None:
    handler = GradScalerKwargs(init_scale=64.0)
    accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[handler])
    (a, first), (b, second) = _weight(torch), _weight(torch)
    first, second = accelerator.prepare(first, second)
    accelerator.backward((a * math.inf).sum())
    accelerator.backward(b.sum())
    first.step()
    second.step()
    assert first.step_was_skipped
    assert not second.step_was_skipped
    assert accelerator.optimizer_step_was_skipped
    # Accelerate halves the factor between the two, and the second step is twice too long.
    assert b.detach().tolist() == [0.5] * 3
    assert accelerator.scaler.get_scale() == 32.0
    # One after the other: the factor changes between two iterations only.
    first.zero_grad()
    second.zero_grad()
    for weight, optimizer in ((a, first), (b, second), (a, first)):
        accelerator.backward(weight.sum())
        accelerator.clip_grad_norm_([weight], 100.0)
        optimizer.step()
        optimizer.zero_grad()
        assert not optimizer.step_was_skipped
    assert b.detach().tolist() == [0.0] * 3


def _overflow_on_one_rank() -> None:
    import math

    from paceline import Accelerator
    from paceline.utils import GradScalerKwargs
    from rankside import RANK, WORLD
    from ways import torch

    handler = GradScalerKwargs(growth_interval=2)
    accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[handler])
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    params = list(model.parameters())
    scales, skipped = [], []
    injections = [None, params[0], None, params[2], params[-1], "loss", None, None]
    for where in injections:
        before = [p.detach().tolist() for p in params]
        rate = scheduler.get_last_lr()
        loss = model(torch.ones(2, 3)).mean() * 0.1  # scaled, it must fit into fp16
        if RANK == WORLD - 1 and where is not None:
            bad = loss if isinstance(where, str) else where.sum()
            loss = loss + bad * math.inf
        accelerator.backward(loss)
        if RANK == 0 and where is None:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        skipped.append(accelerator.optimizer_step_was_skipped)
        scales.append(accelerator.scaler.get_scale())
        same = [p.detach().tolist() for p in params] == before
        assert same == (where is not None), "bit-unchanged where it was skipped"
        assert (scheduler.get_last_lr() == rate) == (where is not None)
    assert skipped == [where is not None for where in injections]
    k = 1024.0
    assert scales == [64 * k, 32 * k, 32 * k, 16 * k, 8 * k, 4 * k, 4 * k, 8 * k], scales


@pytest.mark.parametrize("world", [1, 2, 3])
def test_g6_all_ranks_skip_the_same_step(way: str, world: int) -> None:
    run_ways(way, world, _overflow_on_one_rank, timeout=90)
