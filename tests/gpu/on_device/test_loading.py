# SPDX-License-Identifier: Apache-2.0
"""Data loaders with a GPU: pinned batches, and prepared loaders that put them on the device."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest

import paceline as torch
from paceline import Accelerator, PartialState
from paceline.utils import DataLoaderConfiguration
from paceline.utils.data import DataLoader, Dataset, TensorDataset

Pair = namedtuple("Pair", "x y")


class Dicts(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.full((3,), index), "name": f"n{index}", "pair": Pair(index, 0.5)}


class Own:
    """A batch that pins itself."""

    def __init__(self, samples: Any) -> None:
        self.x = torch.stack([s["x"] for s in samples])

    def pin_memory(self) -> Own:
        self.x = self.x.pin_memory()
        return self


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.mark.parametrize("workers", [0, 2])
def test_pin_memory(workers: int) -> None:
    loader = DataLoader(Dicts(), batch_size=4, pin_memory=True, num_workers=workers)
    seen = []
    for batch in loader:
        assert batch["x"].is_pinned()
        assert batch["pair"].y.is_pinned()
        assert type(batch["pair"]) is Pair
        assert batch["name"][0].startswith("n")
        seen += batch["x"].to("cuda", non_blocking=True)[:, 0].tolist()
    assert seen == list(range(10))


def test_arrays_are_pinned_too_and_a_batch_of_ones_own_is_asked() -> None:
    rows = TensorDataset(torch.arange(8), torch.ones(8, 2))
    for x, y in DataLoader(rows, batch_size=4, pin_memory=True):
        assert x.is_pinned()
        assert y.is_pinned()
    own = next(iter(DataLoader(Dicts(), batch_size=2, collate_fn=Own, pin_memory=True)))
    assert own.x.is_pinned()
    assert not next(iter(DataLoader(rows, batch_size=4)))[0].is_pinned()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_prepared_batches_are_on_the_device(workers: int, pin: bool, late: bool) -> None:
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(non_blocking=late))
    loader = accelerator.prepare(
        DataLoader(Dicts(), batch_size=4, pin_memory=pin, num_workers=workers)
    )
    total = torch.zeros((), dtype=torch.int64, device="cuda")
    for batch in loader:
        assert batch["x"].is_cuda
        assert batch["pair"].x.is_cuda
        total += batch["x"].sum()
    assert total.item() == 3 * 45


def test_without_placement_batches_stay() -> None:
    loader = Accelerator(device_placement=False).prepare(DataLoader(Dicts(), batch_size=4))
    assert not any(batch["x"].is_cuda for batch in loader)


def test_uploads_while_the_device_computes() -> None:
    # Each batch's memory serves again while what was computed with the one before is under way.
    weight = torch.randn(64, 64, device="cuda")
    total = torch.zeros(64, device="cuda")
    expected = torch.zeros(64)
    for at in range(24):
        host = torch.full((8, 64), float(at))
        batch = host.pin_memory().to("cuda", non_blocking=True)
        total += (batch @ weight).sum(0) * 0 + batch.sum(0)
        expected += host.sum(0)
        del batch
    assert torch.equal(total.cpu(), expected)


def test_a_data_set_on_the_device() -> None:
    rows = TensorDataset(torch.arange(8, device="cuda"), torch.ones(8, 2, device="cuda"))
    batches = list(DataLoader(rows, batch_size=4))
    assert [x.tolist() for x, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(x.is_cuda and y.is_cuda for x, y in batches)


def test_a_worker_cannot_use_the_gpu_of_its_parent() -> None:
    class OnGpu(Dicts):
        def __getitem__(self, index: int) -> Any:
            return torch.full((3,), index, device="cuda")

    with pytest.raises(torch.errors.DeviceError, match="CUDA cannot be used in a forked process"):
        list(DataLoader(OnGpu(), batch_size=2, num_workers=1))
