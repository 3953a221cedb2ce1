# SPDX-License-Identifier: Apache-2.0
"""Which devices a launch takes: demanded, filtered, overridden; GPUs are counted by a stand-in."""

from __future__ import annotations

import pytest

from paceline import cuda
from paceline.commands import devices
from paceline.commands.devices import Demand, DeviceError, Devices, plan


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many GPUs as the test names, whatever this machine has; 4 cores."""
    monkeypatch.setattr(cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(devices, "available_cores", lambda: [frozenset({i}) for i in range(4)])


NONE = pytest.mark.parametrize("gpus", [0], indirect=True)
TWO = pytest.mark.parametrize("gpus", [2], indirect=True)
FILTER = {"CUDA_VISIBLE_DEVICES": "0,1"}


@NONE
@pytest.mark.usefixtures("gpus")
def test_without_gpus() -> None:
    assert plan(Demand(3), {}) == Devices(3)
    assert plan(Demand(3, cpu=True), FILTER) == Devices(3)
    assert plan(Demand(None, cpu=True), {}) == Devices(1)
    hint = plan(Demand(None), {})
    assert hint.num_processes == 1
    assert hint.remark == "1 process with 4 threads; --num_processes 4 starts one per core"
    filtered = plan(Demand(2), FILTER)
    assert filtered.num_processes == 2
    assert filtered.remark == (
        "CUDA_VISIBLE_DEVICES=0,1 names GPUs, but there is none: using the CPU"
    )
    assert plan(Demand(2), {"CUDA_VISIBLE_DEVICES": "-1"}) == Devices(2)


@NONE
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("ids", [None, "all", "0,1"])
def test_a_demand_without_gpus_is_refused(ids: str | None) -> None:
    with pytest.raises(DeviceError, match=r"--gpu_ids asks for GPUs, but .*; use --cpu"):
        plan(Demand(2, gpus_by="--gpu_ids", gpu_ids=ids), {})
    assert plan(Demand(2, cpu=True, gpus_by="the file", gpu_ids=ids), {}) == Devices(2)


@TWO
@pytest.mark.usefixtures("gpus")
def test_with_two_gpus() -> None:
    assert plan(Demand(None), {}) == Devices(2)
    assert plan(Demand(None), FILTER) == Devices(2)
    assert plan(Demand(2, gpus_by="--multi_gpu"), {}) == Devices(2)
    assert plan(Demand(None, gpus_by="--gpu_ids", gpu_ids="4,5,6"), {}) == Devices(3, "4,5,6")
    assert plan(Demand(None, gpus_by="--gpu_ids", gpu_ids="all"), {}) == Devices(2)
    with pytest.raises(DeviceError, match="asks for 3 GPUs, but only 2 can be seen"):
        plan(Demand(3, gpus_by="--multi_gpu"), {})
    with pytest.raises(DeviceError, match=r"only 1 are named by gpu_ids \(5\)"):
        plan(Demand(2, gpus_by="--gpu_ids", gpu_ids="5"), {})
