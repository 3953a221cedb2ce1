# SPDX-License-Identifier: Apache-2.0
"""Data loaders leave nothing behind: objects, memory, descriptors, mappings, processes, names."""

from __future__ import annotations

import gc
import multiprocessing
import os
from pathlib import Path

import pytest

import paceline
from harness import names
from paceline import _C
from paceline.utils.data import DataLoader, Dataset, TensorDataset


class Samples(Dataset):
    """Samples that go through shared memory and through the socket."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"x": paceline.full((5000,), float(i)), "text": f"sample {i}" * 3000}


def state() -> dict[str, object]:
    """What a loader could leave behind."""
    gc.collect()
    return {
        "live": _C.live_objects(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "segments": Path("/proc/self/maps").read_text().count("paceline-batches"),
        "children": len(multiprocessing.active_children()),
        "names": names(),
    }


def resident_kib() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def epochs(loader: DataLoader, count: int) -> None:
    """Iterate: whole, left early, left by an exception."""
    for number in range(count):
        for at, batch in enumerate(loader):
            assert batch is not None
            if number % 3 == 1 and at == 1:
                break


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}], ids=str)
def test_epochs_with_workers(options: dict[str, bool]) -> None:
    epochs(DataLoader(Samples(), batch_size=2, num_workers=2, **options), 2)
    before, memory = state(), resident_kib()
    loader = DataLoader(Samples(), batch_size=2, num_workers=2, **options)
    epochs(loader, 20)
    del loader
    assert state() == before
    # Every worker has its own segments: 20 epochs of them would be 20 * 2 * 4 * 160 KiB.
    assert resident_kib() - memory < 8192


def test_epochs_of_arrays() -> None:
    loader = DataLoader(TensorDataset(paceline.zeros(200, 4000)), batch_size=20, shuffle=True)
    epochs(loader, 4)
    before, memory = state(), resident_kib()
    epochs(loader, 200)
    assert state() == before
    assert resident_kib() - memory < 4096
