# SPDX-License-Identifier: Apache-2.0
"""One rank of an all-reduce table: ``go BYTES REPEATS`` gives seconds per call by kind.

Arguments: the library, and which kinds; none named means all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import answer


def paceline_calls(count: int) -> dict[str, Callable[[], object]]:
    import paceline
    import paceline.distributed as dist
    from paceline import _C

    buffer = np.ones(count, dtype=np.float32)
    weight = paceline.zeros(count).requires_grad_()
    weight.grad = paceline.ones(count)
    native = dist.default_group().native
    reducer = _C.Reducer(native, [weight], ["w"], 1 << 40, 1 << 40, dist.ReduceOp.SUM)

    def bucket() -> None:
        reducer.expect()
        reducer.finalize()

    return {"ordinary": lambda: dist.all_reduce(buffer), "bucket": bucket}


def paceline_latest(seconds: float) -> float:
    import paceline.distributed as dist

    buffer = np.array([seconds])
    dist.all_reduce(buffer, dist.ReduceOp.MAX)
    return float(buffer[0])


def torch_latest(seconds: float) -> float:
    import torch

    buffer = torch.tensor([seconds])
    torch.distributed.all_reduce(buffer, torch.distributed.ReduceOp.MAX)
    return float(buffer[0])


def torch_calls(count: int) -> dict[str, Callable[[], object]]:
    import torch

    buffer = torch.ones(count)
    return {"all_reduce": lambda: torch.distributed.all_reduce(buffer)}


def main() -> None:
    library, only = sys.argv[1], sys.argv[2:]
    if library == "paceline":
        import paceline.distributed as dist

        dist.init_process_group()
        make, barrier, latest = paceline_calls, dist.barrier, paceline_latest
    else:
        import torch

        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        make, barrier, latest = torch_calls, torch.distributed.barrier, torch_latest

    def go(nbytes: str, repeats: str) -> dict[str, float]:
        seconds = {}
        for name, call in make(max(int(nbytes) // 4, 1)).items():
            if only and name not in only:
                continue
            answer.settle(call, latest)
            barrier()
            start = time.perf_counter()
            for _ in range(int(repeats)):
                call()
            seconds[name] = (time.perf_counter() - start) / int(repeats)
            barrier()
        return seconds

    answer.serve({"go": go})


if __name__ == "__main__":
    main()
