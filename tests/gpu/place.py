# SPDX-License-Identifier: Apache-2.0
"""Tensors moved to the GPU and back, by the binding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import paceline
from paceline import _C


def on_gpu(t: paceline.Tensor) -> paceline.Tensor:
    """A leaf on the GPU with t's values, and its need of a gradient."""
    moved = _C.to_device(t.detach(), 0, False)
    return moved.requires_grad_() if t.requires_grad else moved


def on_host(t: paceline.Tensor) -> paceline.Tensor:
    return _C.to_device(t.detach(), -1, False)


def both(
    call: Callable[..., paceline.Tensor], args: Sequence[paceline.Tensor]
) -> tuple[list[paceline.Tensor], list[paceline.Tensor]]:
    """The result and the gradients of `call` on the CPU, and those on the GPU, as CPU tensors."""
    found = []
    for here in (list(args), [on_gpu(a) for a in args]):
        index = here[0]._device_index
        out = call(*here)
        assert out._device_index == index
        got = [out.detach()]
        if out.requires_grad:
            weights = paceline.arange(float(out.numel())).reshape(out.shape) / 7 - 1
            out.backward(_C.to_device(weights.to(out.dtype), index, False))
            for a in here:
                if a.requires_grad:
                    assert a.grad is not None
                    assert a.grad._device_index == index
                    got.append(a.grad)
        found.append([on_host(t) for t in got])
    return found[0], found[1]
