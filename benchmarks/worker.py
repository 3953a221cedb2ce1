# SPDX-License-Identifier: Apache-2.0
"""One rank of a row of ``benchmarks/train.py``: ``go N`` runs N steps and gives their times."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import answer, models


@dataclass(frozen=True)
class Setup:
    """Where model and batch come from, and what is called after each forward pass."""

    make: Callable[[Any, str], tuple[Any, Any, Any]] = models.alike
    between: Callable[[], None] = lambda: None


COMMON = Setup()


def accelerator_step(
    library: str, model_name: str, bf16: bool, threads: int, setup: Setup = COMMON
) -> Callable[[], Any]:
    """Give a step through an Accelerator: ours over our tensors, or theirs over PyTorch's."""
    ours = library == "paceline"
    torch: Any = importlib.import_module("paceline" if ours else "torch")
    home: Any = importlib.import_module(library)
    torch.set_num_threads(threads)
    accelerator = home.Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
    model, x, y = setup.make(torch, model_name)
    fused = {} if ours else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, **fused)
    model, optimizer = accelerator.prepare(model, optimizer)

    def loss_of() -> Any:
        logits = model(x)
        return torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)

    def step() -> Any:
        loss = loss_of()
        setup.between()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def torch_step(
    model_name: str, bf16: bool, threads: int, compiled: bool = False, setup: Setup = COMMON
) -> Callable[[], Any]:
    """Give PyTorch's own step."""
    import torch

    torch.set_num_threads(threads)
    model, x, y = setup.make(torch, model_name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    cast: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()

    def loss_of() -> Any:
        with cast:
            logits = model(x)
        return torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), y)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> Any:
        loss = forward()
        setup.between()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def main() -> None:
    library, model, precision, threads = sys.argv[1:5]
    options = model, precision == "bf16", int(threads)
    compiled = library == "torch-compile"
    if library in ("paceline", "accelerate"):
        step = accelerator_step(library, *options)
    else:
        step = torch_step(*options, compiled=compiled)
    answer.serve_steps(step, compiled, memory=answer.peak_mib)


if __name__ == "__main__":
    main()
