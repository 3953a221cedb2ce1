# SPDX-License-Identifier: Apache-2.0
"""One rank of a timed configuration: waits for ``go N``, runs N steps, answers with their times.

All workers of a table live at the same time and take turns, so that the machine's drift meets
every row alike. Not run by hand: see ``benchmarks/train.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import models


def paceline_step(model_name: str, bf16: bool, threads: int) -> Callable[[], None]:
    import paceline as torch
    from paceline import Accelerator

    torch.set_num_threads(threads)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    model, x, y = models.make(torch, model_name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    model, optimizer = accelerator.prepare(model, optimizer)

    def step() -> None:
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def torch_step(model_name: str, bf16: bool, threads: int) -> Callable[[], None]:
    import torch

    torch.set_num_threads(threads)
    model, x, y = models.make(torch, model_name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    cast: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step() -> None:
        with cast:
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    library, model, precision, threads = sys.argv[1:5]
    make = {"paceline": paceline_step, "torch": torch_step}[library]
    step = make(model, precision == "bf16", int(threads))
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
