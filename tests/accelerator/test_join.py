# SPDX-License-Identifier: Apache-2.0
"""join_uneven_inputs: ranks run out of batches at different times, and end up equal."""

from __future__ import annotations

import pytest

from paceline import Accelerator
from ways import run_ways


def _uneven() -> None:
    """Rank r has 2 + r batches of its own; gradients are divided by all ranks, as in torch."""
    import numpy as np

    from paceline import Accelerator
    from paceline.utils import DataLoaderConfiguration
    from rankside import RANK, WORLD
    from ways import torch

    settings = DataLoaderConfiguration(even_batches=False)
    accelerator = Accelerator(dataloader_config=settings)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    weight = start = model.weight.item()
    velocity = 0.0
    with accelerator.join_uneven_inputs([model]):
        for i in range(2 + RANK):
            accelerator.backward(model(torch.full((1, 1), float(10 * i + RANK))).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    rate, rates = 1.0, 0
    for i in range(1 + WORLD):  # the last rank's batches
        active = [r for r in range(WORLD) if i < 2 + r]
        velocity = 0.5 * velocity + sum(10.0 * i + r for r in active) / WORLD
        weight -= rate * velocity
        rates += WORLD
        rate = 1.0 / (1 + rates)
    assert np.isclose(model.weight.item(), weight, rtol=1e-5), (RANK, start, weight)
    # What a step changes besides is equal too: the next step is the same on all ranks.
    assert scheduler.get_last_lr() == [rate]
    accelerator.backward(model(torch.ones(1, 1)).sum())
    optimizer.step()
    weight -= rate * (0.5 * velocity + 1.0)
    assert np.isclose(model.weight.item(), weight, rtol=1e-5), RANK


@pytest.mark.parametrize("world", [2, 3])
def test_trap_11_ranks_that_ran_out_keep_taking_part(way: str, world: int) -> None:
    run_ways(way, world, _uneven, timeout=90)


def _loaders() -> None:
    """The override reaches loaders inside the block only, and windows end together."""
    from paceline import Accelerator
    from rankside import RANK, WORLD
    from ways import torch

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("seen", torch.zeros(1))  # copied from rank 0 before each forward pass
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(3 * WORLD + 1).float().reshape(-1, 1)),
        batch_size=1,
    )
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    counts = []
    for even in (False, True, None):
        count = 0
        with accelerator.join_uneven_inputs([model], even_batches=even):
            for (x,) in data:
                with accelerator.accumulate(model):
                    accelerator.backward((model(x) ** 2).sum())
                    optimizer.step()
                    optimizer.zero_grad()
                count += 1
        counts.append(count)
        weights = accelerator.gather(next(iter(model.parameters())).detach().reshape(1, -1))
        assert len({str(row) for row in weights.tolist()}) == 1
    assert counts == [4 if RANK == 0 else 3, 4, 4], counts
    assert accelerator.even_batches


def test_even_batches_is_overridden_inside_only(way: str) -> None:
    run_ways(way, 2, _loaders, timeout=90)


def _refusals() -> None:
    import pytest

    from paceline import Accelerator
    from paceline.errors import CollectiveMismatchError
    from rankside import RANK
    from ways import torch

    accelerator = Accelerator()
    model, other = accelerator.prepare(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="got Linear, expected models that this"):  # noqa: SIM117
        with accelerator.join_uneven_inputs([torch.nn.Linear(1, 1)], even_batches=False):
            pass
    with accelerator.join_uneven_inputs([model], even_batches=False):
        with pytest.raises(ValueError, match="is active already"):
            with accelerator.join_uneven_inputs([model], even_batches=False):
                pass
    with pytest.raises(CollectiveMismatchError, match="rank 0 runs model 0, rank 1 runs model 1"):
        with accelerator.join_uneven_inputs([model, other], even_batches=False):
            (model if RANK == 0 else other)(torch.ones(1, 1))
    with accelerator.join_uneven_inputs([model], even_batches=False):
        with torch.no_grad():
            model(torch.ones(1, 1))  # nobody needs to know


def test_join_says_what_does_not_fit(way: str) -> None:
    run_ways(way, 2, _refusals, timeout=90)


def test_alone_the_block_does_nothing() -> None:
    with Accelerator().join_uneven_inputs([object()], even_batches=False):
        pass
