# SPDX-License-Identifier: Apache-2.0
"""One row of ``benchmarks/overhead.py``: ``go N`` times everything N times over, in microseconds.

Tensors are so small that nothing but the call itself is timed. CPU time and not the clock's: what
else runs on the machine then matters less.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import answer

CALLS = 1000
STEPS = 200
BATCH = 2


def operator_calls(torch: Any) -> dict[str, Callable[[], Any]]:
    """Calls on 4 x 4 tensors that require a gradient; each makes a graph node and drops it."""
    functional = torch.nn.functional
    x = torch.ones(4, 4).requires_grad_()
    y = torch.ones(4, 4).requires_grad_()
    bias = torch.ones(4).requires_grad_()
    return {
        "x + y": lambda: x + y,
        "x * y": lambda: x * y,
        "x + 1.0": lambda: x + 1.0,
        "x @ y": lambda: x @ y,
        "relu": lambda: functional.relu(x),
        "linear": lambda: functional.linear(x, y, bias),
        "x.sum()": lambda: x.sum(),
        "x.reshape(16)": lambda: x.reshape(16),
        "x.detach()": lambda: x.detach(),
    }


def parts_of_loop(torch: Any) -> tuple[Any, Any, Any]:
    """Give a model of six parameters, its optimizer, and a loader of ``STEPS`` batches."""
    nn = torch.nn
    data = importlib.import_module(torch.__name__ + ".utils.data")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(STEPS * BATCH, 8), torch.randint(0, 4, (STEPS * BATCH,))
    return model, optimizer, data.DataLoader(data.TensorDataset(x, y), batch_size=BATCH)


def plain_loop(torch: Any) -> Callable[[], None]:
    """Give an epoch of a loop without an Accelerator."""
    model, optimizer, loader = parts_of_loop(torch)
    loss_of = torch.nn.functional.cross_entropy

    def epoch() -> None:
        for x, y in loader:
            loss_of(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def prepared_loops(torch: Any, accelerator: Any) -> dict[str, Callable[[], None]]:
    """Give an epoch through an Accelerator, and one with accumulation and clipping besides."""
    model, optimizer, loader = accelerator.prepare(*parts_of_loop(torch))
    loss_of = torch.nn.functional.cross_entropy

    def epoch() -> None:
        for x, y in loader:
            accelerator.backward(loss_of(model(x), y))
            optimizer.step()
            optimizer.zero_grad()

    def clipped() -> None:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return {"step, Accelerator": epoch, "step, accumulate and clip": clipped}


def microseconds(call: Callable[[], Any], times: int) -> float:
    """CPU time per call."""
    start = time.process_time()
    for _ in range(times):
        call()
    return 1e6 * (time.process_time() - start) / times


def main() -> None:
    torch = importlib.import_module(sys.argv[1])
    torch.set_num_threads(1)
    calls = operator_calls(torch)
    loops = {"step, plain loop": plain_loop(torch)}
    home = importlib.import_module("paceline" if sys.argv[1] == "paceline" else sys.argv[2])
    if hasattr(home, "Accelerator"):
        loops |= prepared_loops(torch, home.Accelerator(cpu=True))
    for call in [*calls.values(), *loops.values()]:
        call()

    def go(rounds: str) -> dict[str, list[float]]:
        times = {name: [microseconds(f, CALLS) for _ in range(int(rounds))]
                 for name, f in calls.items()}  # fmt: skip
        for name, f in loops.items():
            times[name] = [microseconds(f, 1) / STEPS for _ in range(int(rounds))]
        return times

    answer.serve({"go": go})


if __name__ == "__main__":
    main()
