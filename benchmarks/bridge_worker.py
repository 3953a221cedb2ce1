# SPDX-License-Identifier: Apache-2.0
"""One rank of a row of ``benchmarks/bridge.py``: ``go N`` runs N steps, ``memory`` tells the peak.

The same PyTorch model, data and loop in each library; only the Accelerator differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import answer, models


def accelerator_of(library: str, precision: str) -> Any:
    """Give the Accelerator of a library; None where ranks do not meet."""
    mixed = "no" if precision == "fp32" else precision
    if library == "paceline":
        from paceline import Accelerator

        return Accelerator(cpu=True, mixed_precision=mixed)
    if library == "accelerate":
        from accelerate import Accelerator as Theirs

        return Theirs(cpu=True, mixed_precision=mixed)
    return None


def make_step(library: str, model_name: str, precision: str) -> Callable[[], Any]:
    torch.set_num_threads(1)
    accelerator = accelerator_of(library, precision)
    model, x, y = models.make(torch, model_name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> Any:
        if accelerator is None:
            with cast:
                logits = model(x).float()
        else:
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def main() -> None:
    answer.serve_steps(make_step(*sys.argv[1:4]), memory=answer.peak_mib)


if __name__ == "__main__":
    main()
