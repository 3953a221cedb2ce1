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
from paceline.nn.utils import clip_grad_norm_, clip_grad_value_

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
