# SPDX-License-Identifier: Apache-2.0
"""The fused classifier on the GPU: what the CPU gives, in the memory of a chunk."""

from __future__ import annotations

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from gpu.place import on_gpu, on_host
from numerics.compare import UNIT, assert_close, tensor
from paceline import nn


def operands(rows: int, width: int, classes: int) -> list[paceline.Tensor]:
    rng = np.random.default_rng(4)
    x = tensor(rng.standard_normal((rows, width)), paceline.float32).requires_grad_()
    w = tensor(rng.standard_normal((classes, width)) * 0.3, paceline.float32).requires_grad_()
    b = tensor(rng.standard_normal(classes), paceline.float32).requires_grad_()
    t = rng.integers(0, classes, rows)
    t[1] = -100
    return [x, w, b, paceline.tensor(t)]


@pytest.mark.parametrize("low", [None, paceline.bfloat16, paceline.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_as_on_the_cpu(low: paceline.dtype | None, reduction: str, frozen: int | None) -> None:
    """Classes that are no multiple of anything: rows of the chunk are padded."""
    found = []
    for here in (operands(11, 8, 37), [on_gpu(a) for a in operands(11, 8, 37)]):
        x, w, b, t = here
        if frozen is not None:
            here[frozen].requires_grad_(False)
        kind = "cpu" if w._device_index < 0 else "cuda"
        with paceline.autocast(kind, low or paceline.bfloat16, enabled=low is not None):
            loss = F.linear_cross_entropy(
                x, w, t, linear_bias=b, reduction=reduction, label_smoothing=0.1,
                options=nn.LinearCrossEntropyOptions(batch_chunk_size=4),
            )  # fmt: skip
        seed = None
        if loss.ndim:
            seed = (paceline.arange(11.0) / 7 - 1).to(loss.device)
        loss.backward(seed)
        grads = [a.grad for a in (x, w, b) if a.requires_grad]
        found.append([on_host(r) for r in (loss, *grads) if r is not None])
    unit = UNIT["float32" if low is None else str(low).removeprefix("paceline.")]
    assert len(found[0]) == len(found[1]) == (4 if frozen is None else 3)
    for i, (want, got) in enumerate(zip(*found, strict=True)):
        assert_close(got.numpy(), want.numpy(), 64 * unit, f"result {i}")


def test_a_target_out_of_range_is_told() -> None:
    x, w, _, t = (on_gpu(a) for a in operands(11, 8, 37))
    loss = F.linear_cross_entropy(x, w, t + 30, weight=on_gpu(paceline.ones(37)))
    with pytest.raises(IndexError, match=r"\[cross_entropy\] target out of range: got "):
        loss.item()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_whole(reduction: str) -> None:
    rows, classes = 64, 2048
    x, w, _, t = (on_gpu(a) for a in operands(rows, 4, classes))
    peaks = []
    for fused in (False, True):
        x.grad = w.grad = None
        paceline.cuda.reset_peak_memory_stats()
        before = paceline.cuda.memory_allocated()
        if fused:
            options = nn.LinearCrossEntropyOptions(batch_chunk_size=8)
            loss = F.linear_cross_entropy(x, w, t, reduction=reduction, options=options)
        else:
            loss = F.cross_entropy(F.linear(x, w), t, reduction=reduction)
        loss.sum().backward()
        peaks.append(paceline.cuda.max_memory_allocated() - before)
    assert peaks[0] >= rows * classes * 4
    assert peaks[1] < rows * classes * 4 / 3
