# SPDX-License-Identifier: Apache-2.0
"""Optimizers and schedules, against PyTorch's step by step."""

from __future__ import annotations

import copy
import io
import math

import pytest

import paceline
from paceline import optim
from paceline.optim import lr_scheduler
from unit import cases


def _pair(torch, name, options):
    paceline.manual_seed(7)
    starts = [paceline.randn(s) for s in cases.SHAPES]
    own = [paceline.nn.Parameter(s.clone()) for s in starts]
    theirs = [torch.nn.Parameter(torch.tensor(s.tolist())) for s in starts]
    made = getattr(optim, name)(own, **options)
    return own, theirs, made, getattr(torch.optim, name)(theirs, **options)


def _set_gradients(torch, own, theirs):
    for p, q in zip(own, theirs, strict=True):
        p.grad = paceline.randn(tuple(p.shape))
        q.grad = torch.tensor(p.grad.tolist())


def _assert_close(torch, own, theirs):
    for p, q in zip(own, theirs, strict=True):
        # The same formulas in fp32, but in another order: an ulp per step or so.
        torch.testing.assert_close(
            torch.tensor(p.tolist()), q.detach(), rtol=2e-5, atol=2e-6, msg=lambda m: m
        )


@pytest.mark.parametrize("code", cases.KINDS["hundred_steps"][1])
def test_hundred_steps_as_pytorch(code: str) -> None:
    own, wanted = cases.hundred_steps(paceline, code), cases.expected("hundred_steps", code)
    for p, q in zip(own, wanted, strict=True):
        # The same formulas in fp32, but in another order: an ulp per step or so.
        cases.assert_same(p, q, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "options"), cases.OPTIMIZERS)
def test_state_goes_both_ways(name, options) -> None:
    torch = pytest.importorskip("torch")
    own, theirs, a, b = _pair(torch, name, options)
    for _ in range(3):
        _set_gradients(torch, own, theirs)
        a.step()
        b.step()
    file = io.BytesIO()
    paceline.save(a.state_dict(), file)
    file.seek(0)
    saved = paceline.load(file)
    again = getattr(optim, name)(own, **{**options, "lr": 5.0})
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == a.param_groups[0]["lr"]

    def to_torch(node):
        if isinstance(node, paceline.Tensor):
            return torch.tensor(node.tolist())
        if isinstance(node, dict):
            return {k: to_torch(v) for k, v in node.items()}
        return node

    b.load_state_dict(
        {"state": to_torch(saved["state"]), "param_groups": copy.deepcopy(saved["param_groups"])}
    )
    _set_gradients(torch, own, theirs)
    again.step()
    b.step()
    _assert_close(torch, own, theirs)
    # And PyTorch's state here.
    a.load_state_dict(b.state_dict())
    _set_gradients(torch, own, theirs)
    a.step()
    b.step()
    _assert_close(torch, own, theirs)


def test_groups_and_flat_neighbours() -> None:
    # Parameters that are neighbours in one buffer, in the opposite order: as a reducer lays them.
    flat = paceline.arange(12.0)
    own = [paceline.nn.Parameter(flat[at : at + 4]) for at in (8, 4, 0)]
    alone = [paceline.nn.Parameter(p.detach().clone()) for p in own]
    made = []
    for params in (own, alone):
        group = {"params": params[1:], "weight_decay": 0.0}
        made.append(optim.AdamW([{"params": params[:1], "lr": 0.1}, group], lr=0.01))
    for _ in range(3):
        for p, q in zip(own, alone, strict=True):
            p.grad = paceline.randn(4)
            q.grad = p.grad.clone()
        for optimizer in made:
            optimizer.step()
    for p, q in zip(own, alone, strict=True):
        assert paceline.equal(p, q)
    first, second = (made[0].state[p]["exp_avg"] for p in own[:0:-1])
    assert second.data_ptr() - first.data_ptr() == 16


def test_grad_scale_is_used_once() -> None:
    params = [paceline.nn.Parameter(paceline.ones(2)) for _ in range(2)]
    one, two = (optim.SGD([p], lr=1.0) for p in params)
    params[0].grad = paceline.full((2,), 4.0)
    params[1].grad = paceline.full((2,), 1.0)
    one.grad_scale = 0.25
    one.step()
    two.step()
    assert paceline.equal(params[0], params[1])
    assert one.grad_scale == 1.0


def test_closure_zero_grad_and_repr() -> None:
    p = paceline.nn.Parameter(paceline.tensor([1.0]))
    optimizer = optim.SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with paceline.no_grad():
        assert optimizer.step(closure).item() == 1
    assert p.item() == pytest.approx(0.8)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.item() == 0
    optimizer.zero_grad()
    assert p.grad is None
    assert repr(optimizer).startswith("SGD (\nParameter Group 0\n    dampening: 0\n")


def test_refusals() -> None:
    p = paceline.nn.Parameter(paceline.ones(1))
    cases = [
        (ValueError, "empty", lambda: optim.Adam([])),
        (TypeError, "iterable", lambda: optim.Adam(p)),
        (TypeError, "Tensors", lambda: optim.Adam([3])),
        (ValueError, "non-leaf", lambda: optim.Adam([p * 2])),
        (ValueError, "more than one", lambda: optim.Adam([p, p])),
        (ValueError, "learning rate", lambda: optim.SGD([p], lr=-1)),
        (ValueError, "beta", lambda: optim.Adam([p], betas=(1.0, 0.9))),
        (ValueError, "Nesterov", lambda: optim.SGD([p], nesterov=True)),
        (NotImplementedError, "amsgrad", lambda: optim.Adam([p], amsgrad=True)),
        (NotImplementedError, "capturable", lambda: optim.AdamW([p], capturable=True)),
        (ValueError, "different number", lambda: optim.SGD([p]).load_state_dict(
            {"state": {}, "param_groups": []})),
        (ValueError, "size", lambda: optim.SGD([p]).load_state_dict(
            {"state": {}, "param_groups": [{"params": [0, 1]}]})),
    ]  # fmt: skip
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()


# -- schedules --------------------------------------------------------------------------------

SCHEDULES = [
    ("LambdaLR", {"lr_lambda": lambda step: 0.9**step}),
    ("LambdaLR", {"lr_lambda": [lambda step: 0.5, lambda step: 1 / (step + 1)]}),
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5], "gamma": 0.3}),
    ("ExponentialLR", {"gamma": 0.8}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 4}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.5, "total_iters": 7}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": [0.5, 0.3], "total_steps": 15}),
    ("OneCycleLR", {"max_lr": 1.0, "epochs": 4, "steps_per_epoch": 5, "three_phase": True}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 40, "anneal_strategy": "linear"}),
]


def _optimizers(torch):
    groups = [{"lr": 0.1}, {"lr": 0.02}]
    own = [{"params": [paceline.nn.Parameter(paceline.ones(1))], **g} for g in groups]
    theirs = [{"params": [torch.nn.Parameter(torch.ones(1))], **g} for g in groups]
    return optim.SGD(own, lr=1.0), torch.optim.SGD(theirs, lr=1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's about the order of step()
@pytest.mark.parametrize(("name", "options"), SCHEDULES)
def test_schedules_as_pytorch(name, options) -> None:
    torch = pytest.importorskip("torch")
    a, b = _optimizers(torch)
    own = getattr(lr_scheduler, name)(a, **options)
    theirs = getattr(torch.optim.lr_scheduler, name)(b, **options)
    for _ in range(14):
        assert own.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-12)
        assert [g["lr"] for g in a.param_groups] == own.get_last_lr()
        a.step()
        b.step()
        own.step()
        theirs.step()
    own.step(4)
    theirs.step(4)
    assert own.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's about the order of step()
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_one_cycle_moves_the_momentum_as_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    own = getattr(optim, kind)([paceline.nn.Parameter(paceline.ones(1))], lr=1.0)
    theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    a = lr_scheduler.OneCycleLR(own, 0.1, 12, pct_start=0.4, div_factor=10)
    b = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, 12, pct_start=0.4, div_factor=10)
    name = "momentum" if kind == "SGD" else "betas"
    for _ in range(12):
        ours, expected = own.param_groups[0], theirs.param_groups[0]
        assert ours["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        assert ours[name] == pytest.approx(expected[name], rel=1e-12)
        a.step()
        b.step()
    with pytest.raises(ValueError, match="total_steps=12"):
        a.step()


def test_one_cycle_refuses_what_makes_no_cycle() -> None:
    optimizer = optim.SGD([paceline.nn.Parameter(paceline.ones(1))], lr=1.0)
    bad: list[tuple[dict[str, object], str]] = [
        ({}, "give total_steps"),
        ({"epochs": 3}, "give total_steps"),
        ({"total_steps": 0}, "total_steps: got 0"),
        ({"epochs": 3, "steps_per_epoch": 1.5}, "steps_per_epoch: got 1.5"),
        ({"total_steps": 3, "pct_start": 1.5}, "pct_start: got 1.5"),
        ({"total_steps": 3, "anneal_strategy": "sine"}, "anneal_strategy: got 'sine'"),
        ({"total_steps": 3, "max_momentum": [0.1, 0.2]}, "max_momentum: got 2 values"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            lr_scheduler.OneCycleLR(optimizer, 0.1, **options)
    del optimizer.defaults["momentum"]
    with pytest.raises(ValueError, match="neither momentum nor betas"):
        lr_scheduler.OneCycleLR(optimizer, 0.1, 3)
    with pytest.raises(TypeError, match="not an Optimizer"):
        lr_scheduler.OneCycleLR(object(), 0.1, 3)
    single = lr_scheduler.OneCycleLR(optimizer, 0.1, 1, cycle_momentum=False)
    assert math.isfinite(single.get_last_lr()[0])


def test_schedule_state() -> None:
    p = paceline.nn.Parameter(paceline.ones(1))
    optimizer = optim.SGD([p], lr=1.0)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(4):
        schedule.step()
    file = io.BytesIO()
    paceline.save({"s": schedule.state_dict(), "o": optimizer.state_dict()}, file)
    file.seek(0)
    saved = paceline.load(file)
    other = optim.SGD([paceline.nn.Parameter(paceline.ones(1))], lr=1.0)
    again = lr_scheduler.CosineAnnealingLR(other, 10)
    again.load_state_dict(saved["s"])
    other.load_state_dict(saved["o"])
    for _ in range(5):
        schedule.step()
        again.step()
        assert again.get_last_lr() == schedule.get_last_lr()
    resumed = lr_scheduler.CosineAnnealingLR(other, 10, last_epoch=3)
    assert resumed.get_last_lr()[0] == pytest.approx((1 + math.cos(math.pi * 0.4)) / 2)
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optim.SGD([p], lr=1.0), 1, last_epoch=2)
    with pytest.raises(TypeError, match="not an Optimizer"):
        lr_scheduler.StepLR(p, 1)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_warmup_lr(kind: str) -> None:
    p = paceline.nn.Parameter(paceline.ones(1))
    optimizer = optim.SGD([p], lr=7.0)
    schedule = lr_scheduler.WarmupLR(optimizer, 0.1, 1.1, 10, kind)
    assert optimizer.param_groups[0]["lr"] == 0.1
    rates = []
    for _ in range(13):
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    # DeepSpeed's formulas, for steps 0, 1, ...
    share = [math.log(i + 1) / math.log(10) if kind == "log" else i / 10 for i in range(10)]
    assert rates == pytest.approx([0.1 + s for s in share] + [1.1] * 3)
    with pytest.raises(ValueError, match="warmup_type"):
        lr_scheduler.WarmupLR(optimizer, warmup_type="cubic")


def test_get_scheduler() -> None:
    def rates(name: str, steps: int = 12, **extra: object) -> list[float]:
        optimizer = optim.SGD([paceline.nn.Parameter(paceline.ones(1))], lr=2.0)
        schedule = optim.get_scheduler(name, optimizer, 2, 10, extra or None)
        out = []
        for _ in range(steps):
            out.append(schedule.get_last_lr()[0])
            schedule.step()
        return out

    warm = [0.0, 1.0]
    assert rates("constant") == [2.0] * 12
    assert rates("constant_with_warmup") == warm + [2.0] * 10
    assert rates("linear") == pytest.approx(warm + [2 * (10 - s) / 8 for s in range(2, 11)] + [0.0])
    half = [1 + math.cos(math.pi * (s - 2) / 8) for s in range(2, 10)]
    assert rates("cosine", 10) == pytest.approx(warm + half)
    twice = [1 + math.cos(math.pi * ((s - 2) / 4 % 1)) for s in range(2, 10)]
    assert rates("cosine_with_restarts", 10, num_cycles=2) == pytest.approx(warm + twice)
    square = [(2 - 0.5) * (1 - (s - 2) / 8) ** 2 + 0.5 for s in range(2, 11)]
    assert rates("polynomial", lr_end=0.5, power=2.0) == pytest.approx([*warm, *square, 0.5])
    optimizer = optim.SGD([paceline.nn.Parameter(paceline.ones(1))], lr=2.0)
    for bad in (("sine", 1, 2), ("linear", None, 2), ("cosine", 1, None)):
        with pytest.raises(ValueError, match=bad[0]):
            optim.get_scheduler(bad[0], optimizer, bad[1], bad[2])
