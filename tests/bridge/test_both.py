# SPDX-License-Identifier: Apache-2.0
"""Two libraries under one Accelerator: neither loads the other, and both train together."""

from __future__ import annotations

import importlib.util

import pytest

from harness import run_ranks


def native_only() -> None:
    import sys

    import paceline
    from paceline import Accelerator
    from paceline.utils import gather_object, set_seed

    set_seed(1)
    accelerator = Accelerator(mixed_precision="bf16")
    data = paceline.utils.data
    loader = data.DataLoader(data.TensorDataset(paceline.ones(8, 3)), batch_size=2)
    model = paceline.nn.Linear(3, 1)
    optimizer = paceline.optim.SGD(model.parameters(), 0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for (x,) in loader:
        with accelerator.accumulate(model), accelerator.autocast():
            accelerator.backward(model(x).sum())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    gather_object([1])
    for name in ("torch", "numpy", "paceline.engines.torch"):
        assert name not in sys.modules, name


def test_a_native_script_loads_neither_torch_nor_its_engine() -> None:
    run_ranks(2, native_only)


def side_by_side() -> None:
    import torch

    import paceline
    from paceline import Accelerator
    from paceline.utils import set_seed, synchronize_rng_state
    from rankside import RANK

    set_seed(5, device_specific=True)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    assert accelerator.device == torch.device("cpu")
    models = accelerator.prepare(torch.nn.Linear(3, 1), paceline.nn.Linear(3, 1))
    optimizers = accelerator.prepare(
        torch.optim.SGD(models[0].parameters(), 0.1),
        paceline.optim.SGD(models[1].parameters(), 0.1),
    )
    for step in range(4):
        with accelerator.accumulate(*models):
            for library, model in zip((torch, paceline), models, strict=True):
                x = library.full((2, 3), float(RANK + step), device=accelerator.device)
                accelerator.backward(model(x).square().mean())
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for model in models:
        rows = accelerator.gather(model.weight.detach()).tolist()
        assert rows[0] == rows[1], rows
    mixed = accelerator.gather({"a": torch.tensor([RANK]), "b": paceline.tensor([RANK])})
    assert isinstance(mixed["a"], torch.Tensor)
    assert isinstance(mixed["b"], paceline.Tensor)
    assert mixed["a"].tolist() == mixed["b"].tolist() == [0, 1]
    torch.manual_seed(RANK)
    paceline.manual_seed(RANK)
    synchronize_rng_state("torch")
    for library in (torch, paceline):
        drawn = accelerator.gather(library.rand(1)).tolist()
        assert drawn[0] == drawn[1], library


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_models_of_both_libraries_train_in_one_program() -> None:
    run_ranks(2, side_by_side, timeout=60)
