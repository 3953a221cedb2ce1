# SPDX-License-Identifier: Apache-2.0
"""One rank of ``benchmarks/scaling.py``: times all-reduces, buckets and training steps."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import paceline
import paceline.distributed as dist
from benchmarks import answer, models
from paceline import _C, Accelerator


def per_call(call: Callable[[], object], times: int) -> float:
    """Seconds of a call, all ranks beginning together."""
    call()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def all_reduce(nbytes: str, times: str) -> float:
    """Time an ordinary buffer of fp32."""
    buffer = np.ones(int(nbytes) // 4, np.float32)
    return per_call(lambda: dist.all_reduce(buffer), int(times))


def bucket(nbytes: str, times: str) -> float:
    """Time one bucket of gradients, reduced in place."""
    weight = paceline.zeros(int(nbytes) // 4).requires_grad_()
    weight.grad = paceline.ones(int(nbytes) // 4)
    native = dist.default_group().native
    reducer = _C.Reducer(native, [weight], ["w"], 1 << 40, 1 << 40, dist.ReduceOp.SUM)

    def call() -> None:
        reducer.expect()
        reducer.finalize()

    return per_call(call, int(times))


class Trainer:
    """A model whose steps are timed with and without communication."""

    def __init__(self, name: str) -> None:
        paceline.set_num_threads(1)
        self.accelerator = Accelerator()
        model, self.x, self.y = models.alike(paceline, name)
        self.sizes = [4 * p.numel() for p in model.parameters()]
        optimizer = paceline.optim.AdamW(model.parameters(), lr=3e-4)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def step(self, alone: bool = False) -> tuple[float, float, float]:
        """Seconds of forward, backward, update."""
        context: Any = self.accelerator.no_sync(self.model) if alone else None
        start = time.perf_counter()
        if context is not None:
            context.__enter__()
        logits = self.model(self.x)
        loss = paceline.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), self.y)
        middle = time.perf_counter()
        self.accelerator.backward(loss)
        after = time.perf_counter()
        if context is not None:
            context.__exit__(None, None, None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return middle - start, after - middle, time.perf_counter() - after

    def steps(self, count: str, alone: str = "") -> list[float]:
        """Medians of forward, backward, update, and of their sum."""
        took = [self.step(alone == "alone") for _ in range(int(count))]
        parts = [statistics.median(column) for column in zip(*took, strict=True)]
        return [*parts, statistics.median(map(sum, took))]


def main() -> None:
    model = sys.argv[1]
    dist.init_process_group()
    trainer = Trainer(model)
    trainer.steps("2")
    answer.serve({
        "all_reduce": all_reduce,
        "bucket": bucket,
        "steps": trainer.steps,
        "sizes": lambda: trainer.sizes,
    })  # fmt: skip


if __name__ == "__main__":
    main()
