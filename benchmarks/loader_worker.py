# SPDX-License-Identifier: Apache-2.0
"""One library's row of the loader's table: ``library rows order``, over memory of its own.

Answers ``go KIND N`` with the seconds of making an epoch's order and its first batch, and the
seconds and the processor's seconds (of all threads of this process) of each of the next N batches.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import answer
from benchmarks.loader import BATCH, COLUMNS

Epoch = Callable[[], Iterator[Any]]  # starts an epoch


def fill(out: Any) -> Any:
    """Fill rows with numbers, block by block; every page is touched."""
    block = np.random.default_rng(0).standard_normal((1000, COLUMNS), np.float32)
    for at in range(0, len(out), 1000):
        out[at : at + 1000] = block[: min(1000, len(out) - at)]
    return out


def numpy_kinds(rows: int, shuffled: bool) -> dict[str, Epoch]:
    """Batches with nothing around them: what memory and NumPy can do."""
    data = fill(np.empty((rows, COLUMNS), np.float32))

    def gather() -> Iterator[Any]:
        order = np.random.default_rng().permutation(rows) if shuffled else np.arange(rows)
        return (data[order[at : at + BATCH]] for at in range(0, rows, BATCH))

    def slices() -> Iterator[Any]:
        return (data[at : at + BATCH].copy() for at in range(0, rows, BATCH))

    return {"gather": gather} if shuffled else {"gather": gather, "slices": slices}


def nothing(worker: int) -> None:
    """Stand for what a script does at the start of a worker."""


def as_it_is(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


class ManyRows:
    """A data set that gives several rows at once, as PyTorch's loader asks where it can."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> Any:
        return self.data[indices]


def library_kinds(row: str, rows: int, shuffled: bool) -> dict[str, Epoch]:
    """Loaders of a library over one tensor, plain and prepared by an Accelerator."""
    library = importlib.import_module("paceline" if row == "paceline" else "torch")
    utils = importlib.import_module(f"{library.__name__}.utils.data")
    data = library.empty((rows, COLUMNS))  # the library's own memory
    fill(data.numpy())

    def loader(of: Any = data, **options: Any) -> Any:
        return utils.DataLoader(of, batch_size=BATCH, shuffle=shuffled, **options)

    def prepared() -> Any:
        module = importlib.import_module("accelerate" if row == "torch" else "paceline")
        return module.Accelerator(cpu=True).prepare(loader())

    loaders: dict[str, Any] = {}
    if row != "bridge":
        # Where arrays are in memory ours starts workers only if there is something to do in them.
        more = {"worker_init_fn": nothing} if row == "paceline" else {}
        loaders = {"plain": loader(), "workers": loader(num_workers=2, **more)}
    if row == "torch":
        loaders["many"] = loader(ManyRows(data), collate_fn=as_it_is)
    if row != "torch" or importlib.util.find_spec("accelerate"):
        loaders["prepared"] = prepared()
    return {kind: functools.partial(iter, made) for kind, made in loaders.items()}


def main() -> None:
    row, rows, shuffled = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shuffled"
    kinds = numpy_kinds(rows, shuffled) if row == "numpy" else library_kinds(row, rows, shuffled)

    def go(kind: str, count: str) -> list[float] | None:
        if kind not in kinds:
            return None
        began = time.perf_counter()
        batches = kinds[kind]()
        next(batches)
        first = time.perf_counter()
        cpu = time.process_time()
        got = sum(1 for _ in itertools.islice(batches, int(count)))
        spent = time.perf_counter() - first
        return [first - began, spent / got, (time.process_time() - cpu) / got]

    for kind in kinds:
        go(kind, "2")
    answer.serve({"go": go}, ready=sorted(kinds))


if __name__ == "__main__":
    main()
