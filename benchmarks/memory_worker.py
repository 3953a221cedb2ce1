# SPDX-License-Identifier: Apache-2.0
"""One process of ``benchmarks/memory.py``: ``use N`` runs N training steps and tells their memory.

Imports nothing that the library itself does not, not even NumPy.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import answer, models, worker

MIB, THREADS = 1 << 20, 2
Use = dict[str, float]


def resident() -> Use:
    """Peak of the resident memory in MiB, and page faults so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"peak": answer.peak_mib()[0], "faults": usage.ru_minflt + usage.ru_majflt}


def run(step: Callable[[], Any], steps: int) -> Use:
    """Peak after some steps, and page faults of one of them; the first three do not count."""
    for _ in range(3):
        step()
    before = resident()["faults"]
    for _ in range(steps):
        step()
    after = resident()
    return {"peak": after["peak"], "faults": (after["faults"] - before) / steps}


def paceline_use(model: str, bf16: bool) -> Callable[[int], Use]:
    from paceline import _C

    start, left = [0.0], [0.0]

    def between() -> None:
        left[0] = (_C.memory_stats()["in_use"] - start[0]) / MIB

    setup = worker.Setup(models.make, between)
    inner = worker.accelerator_step("paceline", model, bf16, THREADS, setup)

    def step() -> None:
        start[0] = _C.memory_stats()["in_use"]
        inner()

    def use(steps: int) -> Use:
        figures = run(step, steps)
        stats = _C.memory_stats()
        figures["forward"] = left[0]
        return {**figures, "most in use": stats["peak"] / MIB, "held": stats["held"] / MIB}

    return use


def torch_use(model: str, bf16: bool) -> Callable[[int], Use]:
    step = worker.torch_step(model, bf16, THREADS, setup=worker.Setup(models.make))
    return lambda steps: run(step, steps)


def main() -> None:
    library, model, precision = sys.argv[1:4]
    make = {"paceline": paceline_use, "torch": torch_use}[library]
    use = make(model, precision == "bf16")
    answer.serve({"use": lambda steps: use(int(steps))})


if __name__ == "__main__":
    main()
