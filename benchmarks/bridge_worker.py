# SPDX-License-Identifier: Apache-2.0
"""One rank of a row of ``benchmarks/bridge.py``: the peak of its memory, then times of steps.

The same PyTorch model, data and loop in each library; only the Accelerator differs. Where there is
one, each step is followed by a step under ``no_sync``, which computes the same and communicates
nothing; before each the ranks meet, untimed, so that neither waits for what the other did before.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import answer, models

WARM_UP = 2


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


class Training:
    """A model of ``benchmarks/models.py`` and its loop, with a library's Accelerator or none."""

    def __init__(self, library: str, model_name: str, precision: str) -> None:
        torch.set_num_threads(1)
        self.accelerator = accelerator_of(library, precision)
        self.model, self.x, self.y = models.make(torch, model_name)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)
        if self.accelerator is not None:
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step(self) -> None:
        """One step of training."""
        if self.accelerator is None:
            with self.cast:
                logits = self.model(self.x).float()
        else:
            logits = self.model(self.x)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), self.y)
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, sync: bool) -> tuple[float, float]:
        """Give the milliseconds of a step, and the CPU's in all threads of this process."""
        alone: AbstractContextManager[Any] = nullcontext()
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            if not sync:
                alone = self.accelerator.no_sync(self.model)
        wall, cpu = time.perf_counter(), time.process_time()
        with alone:
            self.step()
        return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)

    def go(self, steps: str) -> dict[str, list[tuple[float, float]]]:
        """Give wall and CPU milliseconds of steps, and of those without communication."""
        pairs = self.accelerator is not None
        times: dict[str, list[tuple[float, float]]] = {"step": [], "no_sync": []}
        for _ in range(int(steps)):
            times["step"].append(self.timed(True))
            if pairs:
                times["no_sync"].append(self.timed(False))
        return times


def memory_mib() -> list[float]:
    """Give the peak of resident memory, and of that with this rank's part of shared memory.

    The kernel counts a page of shared memory whole in each process that has touched it; the second
    figure has it divided by the number of these processes, as the proportional set size.
    """
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path("/proc/self", file).read_text().splitlines():
            name, _, value = line.partition(":")
            found[name] = value.split()
    rss, shared, share = (int(found[n][0]) / 1024 for n in ("VmHWM", "RssShmem", "Pss_Shmem"))
    return [rss, rss - shared + share]


def main() -> None:
    training = Training(*sys.argv[1:4])
    for _ in range(WARM_UP):
        training.step()
    # Now: under no_sync some libraries keep gradients twice.
    answer.serve({"go": training.go}, ready=memory_mib())


if __name__ == "__main__":
    main()
