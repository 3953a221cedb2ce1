# SPDX-License-Identifier: Apache-2.0
"""One rank of ``benchmarks/exposed.py``: ``go KIND N`` gives the times of N steps of that kind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import answer, models


def paceline_step(model_name: str, bf16: bool) -> Callable[[bool], None]:
    """A step whose reduction can be left out."""
    import paceline as torch
    from paceline import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    model, x, y = models.make(torch, model_name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    model, optimizer = accelerator.prepare(model, optimizer)

    def step(sync: bool) -> None:
        with contextlib.nullcontext() if sync else accelerator.no_sync(model):
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)
            accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def torch_step(model_name: str, bf16: bool) -> Callable[[bool], None]:
    """The same with DDP on Gloo."""
    import torch

    torch.set_num_threads(1)
    model, x, y = models.make(torch, model_name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    cast: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step(sync: bool) -> None:
        with contextlib.nullcontext() if sync else model.no_sync():
            with cast:
                logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), y)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Warm up, then answer."""
    library, model, precision = sys.argv[1:4]
    make = {"paceline": paceline_step, "torch": torch_step}[library]
    step = make(model, precision == "bf16")
    for sync in (True, True, False, True):
        step(sync)

    def go(kind: str, count: str) -> list[float]:
        return answer.timed(lambda: step(kind == "sync"), int(count))

    answer.serve({"go": go})


if __name__ == "__main__":
    main()
