# SPDX-License-Identifier: Apache-2.0
"""Which devices a launch takes: demanded, filtered, overridden; GPUs are counted by a stand-in."""

from __future__ import annotations

import pytest

import vcuda
from paceline import _gpus, cuda
from paceline.commands import devices
from paceline.commands.devices import Demand, DeviceError, Devices, count_gpus, plan


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many GPUs as the test names, whatever this machine has; 4 cores."""
    there = [_gpus.Gpu("NVIDIA H200", f"GPU-{at}", str(at)) for at in range(request.param)]
    monkeypatch.setattr(_gpus, "installed", lambda: there)
    monkeypatch.setattr(_gpus, "only_the_driver_knows", lambda: False)
    monkeypatch.setattr(devices, "_is_built", lambda: True)
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
        "CUDA_VISIBLE_DEVICES=0,1 names GPUs, but there is no GPU, or no NVIDIA driver: "
        "using the CPU"
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
    assert plan(Demand(1), {}) == Devices(1)
    assert plan(Demand(None), FILTER) == Devices(2)
    assert plan(Demand(None), {"CUDA_VISIBLE_DEVICES": "1"}) == Devices(1)
    assert plan(Demand(2, gpus_by="--multi_gpu"), {}) == Devices(2)
    assert plan(Demand(None, gpus_by="--gpu_ids", gpu_ids="1"), {}) == Devices(1, "1")
    assert plan(Demand(None, gpus_by="--gpu_ids", gpu_ids="all"), {}) == Devices(2)
    assert plan(Demand(8, cpu=True), {}) == Devices(8)
    with pytest.raises(DeviceError, match="asks for 3 GPUs, but only 2 can be seen"):
        plan(Demand(3, gpus_by="--multi_gpu"), {})
    with pytest.raises(DeviceError, match=r"only 1 are named by gpu_ids \(0\)"):
        plan(Demand(2, gpus_by="--gpu_ids", gpu_ids="0"), {})
    with pytest.raises(DeviceError, match="names GPUs 4,5, but this machine has 2: 0 to 1"):
        plan(Demand(2, gpus_by="--gpu_ids", gpu_ids="4,5"), {})
    # The numbers of --gpu_ids are the machine's, whatever is filtered.
    assert plan(Demand(None, gpus_by="--gpu_ids", gpu_ids="0"), {"CUDA_VISIBLE_DEVICES": "1"}) == (
        Devices(1, "0")
    )


@TWO
@pytest.mark.usefixtures("gpus")
def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(DeviceError, match="3 processes .* only 2 GPUs .* --num_processes 2, or"):
        plan(Demand(3), {})
    with pytest.raises(DeviceError, match="2 processes .* only 1 GPU can be seen"):
        plan(Demand(2), {"CUDA_VISIBLE_DEVICES": "0"})


@TWO
@pytest.mark.usefixtures("gpus")
def test_a_filter_that_hides_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert count_gpus(hidden) == (0, "CUDA_VISIBLE_DEVICES= hides all of them")
    assert plan(Demand(3), hidden) == Devices(3)
    with pytest.raises(DeviceError, match="--multi_gpu asks for GPUs, but CUDA_VISIBLE_DEVICES="):
        plan(Demand(None, gpus_by="--multi_gpu"), hidden)


@TWO
@pytest.mark.usefixtures("gpus")
def test_gpus_that_nothing_here_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_built", lambda: False)
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    count, missing = count_gpus({})
    assert (count, missing) == (0, "this build of paceline has no CUDA (docs/build.md)")
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: True)  # scripts may use PyTorch
    assert count_gpus({})[0] == 2


def test_a_named_library_is_asked_in_another_process() -> None:
    variables = vcuda.environment(devices=3)
    assert count_gpus(variables)[0] == 3
    assert not cuda.is_initialized()
    broken = {**variables, "PACELINE_CUDA_LIBRARY": "/nowhere/_cuda.so"}
    assert count_gpus(broken)[0] == 0
