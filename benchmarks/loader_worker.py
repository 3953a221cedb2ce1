# SPDX-License-Identifier: Apache-2.0
"""One row of the loader's table: ``kind rows order``; answers "go N" with seconds for N batches.

The array is made anew in each process and lies in memory, all pages touched. With workers, the time
begins at the first batch, so that starting them does not count: it is paid once per epoch.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.loader import BATCH, COLUMNS


def array(rows: int) -> np.ndarray[Any, Any]:
    """Fill rows with numbers, block by block."""
    out = np.empty((rows, COLUMNS), np.float32)
    block = np.random.default_rng(0).standard_normal((1000, COLUMNS), np.float32)
    for at in range(0, rows, 1000):
        out[at : at + 1000] = block[: min(1000, rows - at)]
    return out


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


def epochs(kind: str, rows: int, order: str) -> Iterator[Iterator[Any]]:
    """Yield the iterators of epoch after epoch."""
    data = array(rows)
    if kind == "numpy":
        while True:
            yield numpy_batches(data, order)
    if kind.startswith("torch"):
        import torch as library
    else:
        import paceline as library  # type: ignore[no-redef]
    utils = importlib_data(library.__name__)
    copy = library.empty((rows, COLUMNS))  # the library's own memory
    copy.numpy()[:] = data
    del data
    options = {"num_workers": 2} if kind.endswith("2 workers") else {}
    loader = utils.DataLoader(copy, batch_size=BATCH, shuffle=order == "shuffled", **options)
    while True:
        yield iter(loader)


def importlib_data(library: str) -> Any:
    """Import the library's ``utils.data``."""
    import importlib

    return importlib.import_module(f"{library}.utils.data")


def main() -> None:
    """Answer on stdout, a line for each line on stdin."""
    kind, rows, order = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    source = epochs(kind, rows, order)
    batches = next(source)
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted, seconds = int(line.split()[1]), 0.0
        while wanted > 0:
            began = time.perf_counter()
            got = sum(1 for _ in itertools.islice(batches, wanted))
            seconds += time.perf_counter() - began
            wanted -= got
            if wanted > 0:
                batches = next(source)
                next(batches)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
