# SPDX-License-Identifier: Apache-2.0
"""One row of the loader's table: ``kind rows order``; answers "go N" with seconds for N batches.

The array is made anew in each process and lies in memory, all pages touched. With workers, the time
begins at the first batch, so that starting them does not count: it is paid once per epoch.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import answer
from benchmarks.loader import BATCH, COLUMNS


def fill(out: Any) -> None:
    """Fill rows with numbers, block by block."""
    block = np.random.default_rng(0).standard_normal((1000, COLUMNS), np.float32)
    for at in range(0, len(out), 1000):
        out[at : at + 1000] = block[: min(1000, len(out) - at)]


def numpy_batches(data: np.ndarray[Any, Any], order: str) -> Iterator[Any]:
    """Yield the batches of one epoch with nothing around them."""
    n = len(data)
    if order == "in order":
        for at in range(0, n, BATCH):
            yield data[at : at + BATCH].copy()
        return
    permutation = np.random.default_rng().permutation(n)
    for at in range(0, n, BATCH):
        yield data[permutation[at : at + BATCH]]


def nothing(worker: int) -> None:
    """Stand for what a script does at the start of a worker."""


def epochs(kind: str, rows: int, order: str) -> Iterator[Iterator[Any]]:
    """Yield the iterators of epoch after epoch."""
    if kind == "numpy":
        data = np.empty((rows, COLUMNS), np.float32)
        fill(data)
        while True:
            yield numpy_batches(data, order)
    library = importlib.import_module("torch" if kind.startswith("torch") else "paceline")
    utils = importlib.import_module(f"{library.__name__}.utils.data")
    tensor = library.empty((rows, COLUMNS))  # the library's own memory
    fill(tensor.numpy())
    options: dict[str, Any] = {"num_workers": 2} if kind.endswith("2 workers") else {}
    if kind == "paceline 2 workers":
        options["worker_init_fn"] = nothing  # without it there are none: see DataLoader
    loader = utils.DataLoader(tensor, batch_size=BATCH, shuffle=order == "shuffled", **options)
    while True:
        yield iter(loader)


def main() -> None:
    """Answer on stdout, a line for each line on stdin."""
    kind, rows, order = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    source = epochs(kind, rows, order)
    batches = next(source)
    next(batches)

    def go(count: str) -> float:
        nonlocal batches
        wanted, seconds = int(count), 0.0
        while wanted > 0:
            began = time.perf_counter()
            got = sum(1 for _ in itertools.islice(batches, wanted))
            seconds += time.perf_counter() - began
            wanted -= got
            if wanted > 0:
                batches = next(source)
                next(batches)
        return seconds

    answer.serve({"go": go})


if __name__ == "__main__":
    main()
