# SPDX-License-Identifier: Apache-2.0
"""Causal attention, forward and backward, of one library: ``go N`` gives the times of N passes.

Arguments: library, precision, threads, batch, heads, context, head size.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import answer


def passes(torch: Any, precision: str, sizes: list[int]) -> Callable[[], None]:
    """Give a call that runs both passes on tensors in the precision itself."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    q, k, v = (torch.randn(*sizes).to(dtype).requires_grad_() for _ in range(3))
    seed = torch.randn(*sizes).to(dtype)

    def both() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(seed)
        for x in (q, k, v):
            x.grad = None

    return both


def main() -> None:
    library, precision, threads, *sizes = sys.argv[1:8]
    torch = importlib.import_module(library)
    torch.set_num_threads(int(threads))
    call = passes(torch, precision, [int(s) for s in sizes])
    answer.timed(call, 3)  # makes primitives and pages
    answer.serve({"go": lambda n: answer.timed(call, int(n))})


if __name__ == "__main__":
    main()
