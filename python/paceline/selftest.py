# SPDX-License-Identifier: Apache-2.0
"""What ``paceline test`` runs on every process, to see whether this machine trains rightly.

Each check compares with what one process computes alone, in fp64, and raises with what is wrong.
Run by ``python -m``: ``paceline launch`` starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paceline as torch
from paceline import Accelerator
from paceline.utils import gather_object
from paceline.utils.data import DataLoader, TensorDataset

_STEPS = 4
_TOLERANCE = 1e-10  # fp64, and sums of a few hundred numbers


def _expect(what: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise AssertionError(f"{what}: got {got}, expected {expected}")


def check_processes(accelerator: Accelerator) -> str:
    """Every rank is there once."""
    world = accelerator.num_processes
    _expect("ranks", gather_object([accelerator.process_index]), list(range(world)))
    return f"{world} of {world} processes take part"


def check_collectives(accelerator: Accelerator) -> str:
    """Gather and reduce give what arithmetic gives."""
    world, rank = accelerator.num_processes, accelerator.process_index
    here = accelerator.device
    own = torch.arange(5, dtype=torch.float64, device=here) + 10 * rank
    total = [sum(i + 10 * r for r in range(world)) for i in range(5)]
    _expect("sum over the processes", accelerator.reduce(own).tolist(), total)
    every = [i + 10 * r for r in range(world) for i in range(5)]
    _expect("gather", accelerator.gather(own).tolist(), every)
    big = torch.ones(1 << 20, device=here) * (rank + 1)
    _expect(
        "sum of a large tensor",
        accelerator.reduce(big).sum().item(),
        float((1 << 20) * sum(range(1, world + 1))),
    )
    return "sums and gathers are right"


def check_data(accelerator: Accelerator) -> str:
    """Every sample is seen once."""
    n = 8 * accelerator.num_processes + 3
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(n)), 4, shuffle=True))
    seen = [i for (batch,) in loader for i in accelerator.gather_for_metrics(batch).tolist()]
    _expect("samples of a shuffled loader, sorted", sorted(seen), list(range(n)))
    return "every sample is seen once"


def _model() -> Any:
    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    ).double()


def _train(model: Any, optimizer: Any, batches: Any, backward: Callable[[Any], None]) -> None:
    for x, y in batches:
        backward(((model(x) - y) ** 2).mean())
        optimizer.step()
        optimizer.zero_grad()


def check_training(accelerator: Accelerator) -> str:
    """The same global batches give the same weights as one process alone."""
    torch.manual_seed(1)
    size = 6 * accelerator.num_processes
    x = torch.randn(_STEPS * size, 8, dtype=torch.float64)
    data = TensorDataset(x, x.sum(1, keepdim=True).sin())
    alone = _model()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01)
    _train(alone, optimizer, DataLoader(data, size), lambda loss: loss.backward())
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 6))
    _train(model, optimizer, loader, accelerator.backward)
    for (name, mine), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        far = (mine.cpu() - other).abs().max().item()
        if not far <= _TOLERANCE:
            raise AssertionError(
                f"training: after {_STEPS} steps {name} differs by {far:.3g} from what one "
                f"process computes, expected at most {_TOLERANCE:g}: gradients are not averaged "
                "as they should be"
            )
        sums = gather_object([mine.sum().item()])
        _expect(f"training: {name}, summed on each rank", sums, [sums[0]] * len(sums))
    return f"{_STEPS} steps give the weights of one process"


def main() -> None:
    """Run all checks; the first that fails ends the program with its message."""
    accelerator = Accelerator(mixed_precision="no")
    for check in (check_processes, check_collectives, check_data, check_training):
        accelerator.print(f"ok: {check(accelerator)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
