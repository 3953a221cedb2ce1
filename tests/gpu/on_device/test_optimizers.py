# SPDX-License-Identifier: Apache-2.0
"""Optimizers, norms, clipping, loss scaling and autocast on the GPU as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paceline
from gpu.place import on_gpu, on_host
from numerics.compare import assert_close
from paceline import _C, amp, optim
from paceline.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

STEPS = 4


def parameters(dtype: paceline.dtype) -> list[paceline.Tensor]:
    rng = np.random.default_rng(2)
    return [
        paceline.tensor(rng.standard_normal(shape).astype(np.float32)).to(dtype).requires_grad_()
        for shape in ((7, 5), (5,), (33, 3), ())
    ]


def loss_of(ps: list[paceline.Tensor]) -> paceline.Tensor:
    total = (ps[0] * ps[1]).tanh().sum() * ps[3]
    return total + (ps[2].exp() * ps[3]).mean()


def trained(make: Callable[[Any], Any], gpu: bool, dtype: paceline.dtype) -> list[Any]:
    ps = [on_gpu(p) if gpu else p for p in parameters(dtype)]
    optimizer = make(ps)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ps).backward()
        if step % 2:
            clip_grad_norm_(ps, 0.5)
        optimizer.step()
        assert optimizer.grads_were_finite is True
    for p in ps:
        assert all(
            t._device_index == p._device_index
            for t in optimizer.state.get(p, {}).values()
            if isinstance(t, paceline.Tensor)
        )
    return [on_host(p).double().numpy() for p in ps]


OPTIMIZERS = {
    "adam": lambda ps: optim.Adam(ps, lr=0.05, weight_decay=0.1),
    "adamw": lambda ps: optim.AdamW(ps, lr=0.05, maximize=True),
    "sgd": lambda ps: optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
}


@pytest.mark.parametrize("dtype", [paceline.float32, paceline.float64, paceline.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps(name: str, dtype: paceline.dtype) -> None:
    want = trained(OPTIMIZERS[name], False, dtype)
    got = trained(OPTIMIZERS[name], True, dtype)
    # A rounding of the gradient moves Adam's first steps, which are of size lr whatever it is, by
    # a rounding of lr; four steps add up.
    bound = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 4e-2}
    for w, g in zip(want, got, strict=True):
        assert_close(g, w, bound[str(dtype).removeprefix("paceline.")], name)


def grads(gpu: bool, values: list[list[float]]) -> list[paceline.Tensor]:
    out = []
    for v in values:
        p = paceline.zeros(len(v)).requires_grad_()
        p = on_gpu(p) if gpu else p
        p.grad = _C.to_device(paceline.tensor(v), p._device_index, False)
        out.append(p)
    return out


@pytest.mark.parametrize("kind", [2.0, math.inf])
def test_norms(kind: float) -> None:
    values = [[3.0, -4.0], [12.0], [84.0, 0.0, 0.0]]
    norms = []
    for gpu in (False, True):
        ps = grads(gpu, values)
        norms.append(_C.grad_norm([p.grad for p in ps if p.grad is not None], kind))
        assert float(clip_grad_norm_(ps, 1.0, kind)) == norms[-1]
    assert norms == [85.0, 85.0] if kind == 2.0 else norms == [84.0, 84.0]
    clip_grad_value_(ps, 0.01)
    assert all(float(p.grad.abs().max()) <= 0.0100001 for p in ps if p.grad is not None)


VALUES = [[3.0, -4.0], [12.0], [84.0, 0.0, 0.0], []]
MANY = [[math.sin(7.0 * i + k) for k in range(i)] for i in range(1, 40)]


def clipped(gpu: bool, values: list[list[float]], how: str, dtype: paceline.dtype) -> list[Any]:
    """Norm, gradients and parameters after clipping and a step."""
    ps = [p.detach().to(dtype).requires_grad_() for p in grads(gpu, values)]
    for p, v in zip(ps, values, strict=True):
        p.grad = _C.to_device(paceline.tensor(v).to(dtype), p._device_index, False)
    held = [p.grad for p in ps] if "held" in how else None
    if "unscaled" in how:
        _C.leaf_scale_(ps, 0.25 if "exactly" in how else 0.3, True)
    kind = 3.0 if "cubes" in how else math.inf if "largest" in how else 2.0
    norm = clip_grad_norm_(ps, 0.7, kind)
    if "twice" in how:
        clip_grad_norm_(ps, 0.3)
    if "known" in how:
        clip_grads_with_norm_(ps, 0.1, get_total_norm([p.grad for p in ps if p.grad is not None]))
    if "read" in how:
        assert all(p.grad is not None for p in ps)
    optim.SGD(ps, lr=1.0).step()
    assert norm._device_index == ps[0]._device_index
    assert norm.dtype is paceline.float32
    del held
    after = [p.grad for p in ps if p.grad is not None]
    return [on_host(t).double().numpy() for t in (norm, *after, *ps)]


@pytest.mark.parametrize("dtype", [paceline.float32, paceline.float64, paceline.bfloat16], ids=str)
@pytest.mark.parametrize(
    "how",
    [
        "alone",
        "held",
        "read",
        "exactly unscaled",
        "unscaled",
        "twice",
        "twice held",
        "known",
        "cubes",
        "largest",
        "largest held",
    ],
)
def test_clipping(how: str, dtype: paceline.dtype) -> None:
    want = clipped(False, MANY, how, dtype)
    got = clipped(True, MANY, how, dtype)
    # The norm's sum has another order, and ends as fp32; halves are rounded at every product, and
    # the CPU rounds the factor as well.
    bound = {"float64": 3e-7, "float32": 1e-6, "bfloat16": 2.0**-6}
    for w, g in zip(want, got, strict=True):
        assert_close(g, w, bound[str(dtype).removeprefix("paceline.")], how)


@pytest.mark.parametrize("kind", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite(bad: float, kind: float) -> None:
    for spread in (True, False):
        found = []
        for gpu in (False, True):
            ps = grads(gpu, [[1.0, 2.0], [bad], []])
            norm = clip_grad_norm_(ps, 1.0, kind, scale_nonfinite=spread)
            found.append([norm.item(), *(p.grad.tolist() for p in ps if p.grad is not None)])
            with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
                clip_grad_norm_(ps, 1.0, kind, error_if_nonfinite=True)
        np.testing.assert_equal(found[1], found[0])


def test_clipping_gradients_of_two_devices() -> None:
    ps = [*grads(True, VALUES[:2]), *grads(False, VALUES[2:])]
    for kind, norm in ((2.0, 85.0), (math.inf, 84.0), (1.0, 103.0)):
        total = get_total_norm([p.grad for p in ps if p.grad is not None], kind)
        assert total.item() == pytest.approx(norm)
        assert total._device_index == 0
    assert clip_grad_norm_(ps, 8.5).item() == 85.0
    assert [p.grad.tolist() for p in ps if p.grad is not None] == [
        pytest.approx([x / 10 for x in v]) for v in VALUES
    ]
    clip_grads_with_norm_(ps, 1.0, paceline.tensor(2.0))
    assert clip_grad_norm_(ps, math.inf).item() == pytest.approx(4.25)


def test_norms_of_views_and_of_what_has_none() -> None:
    t = on_gpu(paceline.arange(12.0).reshape(3, 4))
    assert get_total_norm([t.transpose(0, 1), t[:, :2]]).item() == pytest.approx(
        math.sqrt(506 + 0 + 1 + 16 + 25 + 64 + 81)
    )
    assert get_total_norm([t.transpose(0, 1)], math.inf).item() == 11.0
    p = on_gpu(paceline.zeros(4, 3)).requires_grad_()
    p.grad = t.transpose(0, 1)
    assert clip_grad_norm_([p], 1.0).item() == pytest.approx(math.sqrt(506))
    assert p.grad is not None
    assert p.grad.pow(2).sum().item() == pytest.approx(1.0)
    assert clip_grad_norm_([on_gpu(paceline.zeros(2)).requires_grad_()], 1.0).item() == 0.0
    with pytest.raises(TypeError, match=r"\[norm\] tensor 0: got dtype int64, expected a floating"):
        get_total_norm([on_gpu(paceline.arange(3))])
    with pytest.raises(ValueError, match="expected f64, 0-d"):
        _C.leaf_scale_by_([p], on_gpu(paceline.ones(1)))


def test_a_norm_of_nan_is_nan() -> None:
    for kind in (2.0, math.inf):
        gs = [p.grad for p in grads(True, [[1.0], [math.nan, 2.0], [3.0]]) if p.grad is not None]
        assert math.isnan(_C.grad_norm(gs, kind))
    assert _C.grad_norm([on_gpu(paceline.zeros(0)), on_gpu(paceline.ones(1))], math.inf) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    ps = grads(True, [[1.0, 2.0], [bad]])
    assert _C.leaf_scale_(ps[:1], 0.5, True) is True
    assert _C.leaf_scale_(ps, 0.5, True) is False
    assert _C.unscale_([p.grad for p in ps if p.grad is not None], 0.25) is False
    optimizer = optim.SGD(ps, lr=0.1)
    optimizer.step()
    assert optimizer.grads_were_finite is False


def test_a_factor_left_with_the_gradients_is_applied_once() -> None:
    ps = grads(True, [[1.0, 2.0], [4.0]])
    assert _C.leaf_scale_(ps, 0.25, True) is True
    assert _C.leaf_norm(ps) == pytest.approx(math.sqrt(21) / 4)
    first = ps[0].grad
    assert first is not None
    assert first.tolist() == [0.25, 0.5]
    optim.SGD(ps, lr=1.0).step()
    assert [on_host(p).tolist() for p in ps] == [[-0.25, -0.5], [-1.0]]


def low_trained(make: Callable[[Any], Any], low: paceline.dtype, touch: bool) -> list[Any]:
    """Losses and parameters; `touch` has every weight cast anew at each forward pass."""
    paceline.manual_seed(0)
    model = paceline.nn.Sequential(
        paceline.nn.Linear(9, 24), paceline.nn.GELU(), paceline.nn.Linear(24, 3)
    ).to("cuda")
    optimizer = make(model.parameters())
    x, found = on_gpu(paceline.arange(36.0).reshape(4, 9) / 18 - 1), []
    for step in range(STEPS):
        if touch:
            with paceline.no_grad():
                for p in model.parameters():
                    p.mul_(1.0)
        if step == 2:  # what was kept does not serve a parameter that was changed since
            with paceline.no_grad():
                model[0].weight.mul_(0.5)
        with paceline.autocast("cuda", low):
            loss = (model(x).float() ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return [*found, *(on_host(p).tolist() for p in model.parameters())]


@pytest.mark.parametrize("low", [paceline.bfloat16, paceline.float16], ids=str)
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_copies_for_autocast_are_what_a_cast_gives(name: str, low: paceline.dtype) -> None:
    assert low_trained(OPTIMIZERS[name], low, False) == low_trained(OPTIMIZERS[name], low, True)


def test_parameters_of_two_devices_in_one_call_are_refused() -> None:
    ps = grads(True, [[1.0]]) + grads(False, [[1.0]])
    with pytest.raises(RuntimeError, match="on one device"):
        _C.sgd_step(ps, None, None, True, 0.1, 0.0, 0.0, 0.0, False, False, 1.0)


def test_loss_scaling() -> None:
    found = []
    for gpu in (False, True):
        ps = [on_gpu(p) if gpu else p for p in parameters(paceline.float32)]
        optimizer = optim.SGD(ps, lr=0.1)
        scaler = amp.GradScaler(init_scale=64.0, growth_interval=2)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(ps) * (math.inf if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append((scaler.get_scale(), [on_host(p).numpy() for p in ps]))
    assert found[0][0] == found[1][0]
    for w, g in zip(found[0][1], found[1][1], strict=True):
        assert_close(g, w, 2e-6, "scaled")


def test_gradients_of_a_scale_in_a_flat_buffer_are_one_run() -> None:
    """Adjacent parameters are one kernel call on the GPU too, and get the same numbers."""
    flat = on_gpu(paceline.arange(12.0))
    ps = [flat[:4].detach().requires_grad_(), flat[4:].detach().requires_grad_()]
    memory = on_gpu(paceline.ones(12))
    for p, part in zip(ps, (memory[:4], memory[4:]), strict=True):
        p.grad = part
    optim.SGD(ps, lr=2.0).step()
    assert flat.tolist() == [float(i) - 2 for i in range(12)]
