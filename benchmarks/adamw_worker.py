# SPDX-License-Identifier: Apache-2.0
"""One row of ``benchmarks/adamw.py``: ``go CASE`` gives the seconds of two things.

Those of a backward pass that makes new gradients, and those of one optimizer step after it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import answer

PIECES = 48  # tensors, about the matrices of GPT-2
SCALE = 65536.0


def tools(library: str, threads: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A library, its clipping, its scaler, and what its AdamW is to be told."""
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        scaler.scale(torch.zeros(()))  # makes its tensors
        return torch, torch.nn.utils.clip_grad_norm_, scaler, {"fused": True}
    import paceline
    from paceline.amp import GradScaler
    from paceline.nn.utils import clip_grad_norm_

    paceline.set_num_threads(threads)
    return paceline, clip_grad_norm_, GradScaler(init_scale=SCALE), {}


def main() -> None:
    """Make parameters and optimizer, do each case that is named once, then answer."""
    library, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    lib, clip, scaler, options = tools(library, threads)
    params = [lib.zeros(count // PIECES).requires_grad_() for _ in range(PIECES)]
    optimizer = lib.optim.AdamW(params, lr=1e-3, **options)

    one = lib.full((), 1e-3)

    def backward() -> None:
        optimizer.zero_grad()
        for p in params:  # one after another, so that none waits for the others in the cache
            (p * one).sum().backward()

    def unscale() -> None:
        scaler.unscale_(optimizer)
        clip(params, 0.5)
        scaler.step(optimizer)

    def clipped() -> None:
        clip(params, 0.5)
        optimizer.step()

    cases: dict[str, Callable[[], object]] = {
        "step": optimizer.step, "clip": clipped, "unscale": unscale,
    }  # fmt: skip

    def go(case: str) -> list[float]:
        start = time.perf_counter()
        backward()
        between = time.perf_counter()
        cases[case]()
        end = time.perf_counter()
        if case == "unscale":
            scaler.update()
        return [between - start, end - between]

    for case in sys.argv[4:]:
        go(case)
    answer.serve({"go": go})


if __name__ == "__main__":
    main()
