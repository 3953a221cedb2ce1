# SPDX-License-Identifier: Apache-2.0
"""Prepared torch models leave nothing behind, freed or forgotten."""

from __future__ import annotations

import pytest

from harness import run_ranks

pytest.importorskip("torch")


def coming_and_going() -> None:
    import gc

    import torch

    from paceline import _C, Accelerator

    def train(accelerator: Accelerator) -> torch.nn.Module:
        model = accelerator.prepare(torch.nn.Linear(64, 64))
        for _ in range(2):
            accelerator.backward(model(torch.ones(2, 64)).sum())
        return model

    def live() -> dict[str, int]:
        gc.collect()
        return _C.live_objects()

    accelerator = Accelerator()
    train(accelerator)
    accelerator.free_memory()
    before = live()
    for _ in range(5):
        model = train(accelerator)
        accelerator.free_memory()
        assert model.weight.grad is not None
        del model
    assert live() == before, (before, live())
    for _ in range(3):
        other = Accelerator()
        train(other)
        del other
    assert live()["reducer"] == before["reducer"], (before, live())
    # A gradient that the script keeps keeps its memory.
    model = train(accelerator)
    kept = model.weight.grad
    accelerator.free_memory()
    del model
    gc.collect()
    assert torch.isfinite(kept).all()
    del kept
    assert live() == before, (before, live())


def test_reducers_and_segments_go_with_the_model() -> None:
    run_ranks(2, coming_and_going)
