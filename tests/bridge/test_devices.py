# SPDX-License-Identifier: Apache-2.0
"""What happens where PyTorch has a GPU, with a GPU that is made up: choices, not computations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launching import command

torch = pytest.importorskip("torch")

from paceline.engines.torch import ENGINE, device_group, engine, report, sync  # noqa: E402
from paceline.errors import DeviceError  # noqa: E402


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, one_process: None) -> Iterator[list[Any]]:
    """Two GPUs; the list has those that were made PyTorch's current one."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    engine._gpu.cache_clear()
    yield calls
    engine._gpu.cache_clear()


def test_each_process_has_the_gpu_of_its_local_rank(chosen: list[Any]) -> None:
    for rank in (0, 1, 1):
        assert ENGINE.device(rank, False) == torch.device("cuda", rank)
    assert chosen == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert ENGINE.device(5, True) == torch.device("cpu")
    with pytest.raises(DeviceError, match="got local rank 2, and 2 GPUs; start no more than 2"):
        ENGINE.device(2, False)


def test_an_accelerator_moves_models_and_batches_there(
    chosen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paceline import Accelerator

    moved: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, to: moved.append(("model", to)))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, to, non_blocking: moved.append(("batch", to)) or self
    )
    data = torch.utils.data.TensorDataset(torch.ones(2, 3))
    accelerator = Accelerator()
    assert accelerator.device == torch.device("cuda", 0)
    _, loader = accelerator.prepare(
        torch.nn.Linear(3, 1), torch.utils.data.DataLoader(data, batch_size=2)
    )
    next(iter(loader))
    assert moved == [("model", accelerator.device), ("batch", accelerator.device)]
    del moved[:]
    left = Accelerator(device_placement=False)
    _, loader = left.prepare(torch.nn.Linear(3, 1), torch.utils.data.DataLoader(data, batch_size=2))
    next(iter(loader))
    assert moved == []


def test_models_of_paceline_stay_on_the_cpu_beside_it(chosen: list[Any]) -> None:
    import paceline

    accelerator = paceline.Accelerator()
    data = paceline.utils.data
    loader = data.DataLoader(data.TensorDataset(paceline.ones(2, 3)), batch_size=2)
    model, loader = accelerator.prepare(paceline.nn.Linear(3, 1), loader)
    (batch,) = next(iter(loader))
    accelerator.backward(model(batch).sum())
    assert str(accelerator.device) == "cuda:0"
    assert str(model.weight.device) == str(model.weight.grad.device) == "cpu"


def test_autocast_covers_the_gpu_once_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: kinds.append(kind) or nullcontext())
    with ENGINE.autocast("bf16"):
        assert kinds == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with ENGINE.autocast("fp16"):
        assert kinds == ["cpu", "cpu", "cuda"]


def test_the_gpus_random_state_is_saved_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.arange(16, dtype=torch.uint8)
    got: list[Any] = []
    plain = ENGINE.rng_state()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_rng_state", got.append)
    both = ENGINE.rng_state()
    drawn = torch.rand(3)
    ENGINE.set_rng_state(both)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(got[0], own)
    ENGINE.set_rng_state(plain)  # of a run on the CPU
    assert len(got) == 1
    with pytest.raises(ValueError, match="no state of torch's generator"):
        ENGINE.set_rng_state({"cuda": both["cuda"]})


# --- fp16 ---------------------------------------------------------------------------------------


def _train(scaler: Any) -> tuple[list[float], list[bool], dict[str, Any]]:
    from paceline.training.loss_scaling import LossScaling

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaling = LossScaling(scaler, [SimpleNamespace(optimizer=optimizer)])  # type: ignore[list-item]
    skipped = []
    for step in range(6):
        factor = float("inf") if step == 2 else 1.0
        scaling.scale((weight * factor).square().sum(), True).backward()
        if step % 2:
            scaling.unscale([optimizer])
            scaling.unscale([optimizer])
        skipped.append(scaling.step(optimizer, ())[1])
        optimizer.zero_grad()
    return weight.tolist(), skipped, scaler.state_dict()


def test_torchs_scaler_does_what_ours_does() -> None:
    from paceline.engines.torch.scaler import TorchGradScaler

    options = {"init_scale": 4.0, "growth_interval": 2}
    ours = _train(ENGINE.gradient_scaler("cpu", **options))
    theirs = _train(TorchGradScaler("cpu", **options))
    assert ours == theirs
    assert ours[1] == [False, False, True, False, False, False]


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not")
def test_a_gpu_has_torchs_scaler(chosen: list[Any]) -> None:
    from paceline import Accelerator
    from paceline.amp import GradScaler

    assert isinstance(Accelerator(mixed_precision="fp16").scaler, torch.amp.GradScaler)
    assert type(ENGINE.gradient_scaler(torch.device("cpu"))) is GradScaler


# --- the way between the ranks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "machines", "nccl", "text"),
    [
        ("cuda", 1, True, ""),
        ("cuda", 1, False, "this PyTorch was built without nccl"),
        ("cuda", 2, True, "the ranks are on 2 machines, expected 1"),
        ("meta", 1, True, "no backend is known, got 'meta', expected one of cpu, cuda"),
    ],
)
def test_obstacles_have_a_name(
    monkeypatch: pytest.MonkeyPatch, kind: str, machines: int, nccl: bool, text: str
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    group: Any = SimpleNamespace(machines=("here",) * machines)
    assert device_group._obstacle(group, kind) == text


def test_parameters_that_cannot_be_in_one_bucket_are_named() -> None:
    here, there = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")
    named = [("here", here.weight), ("there", there.weight)]
    with pytest.raises(NotImplementedError, match=r"got parameters on cpu \('here'\), meta \('th"):
        sync._reducer(named, None, 1)
    sparse = torch.nn.Parameter(torch.eye(2).to_sparse())
    with pytest.raises(
        NotImplementedError, match="'s' is of layout torch.sparse_coo, expected a d"
    ):
        sync._reducer([("s", sparse)], None, 1)


def test_tensors_on_a_gpu_always_go_by_torch() -> None:
    assert device_group.goes_by_torch(torch.device("cuda", 1))
    assert not device_group.goes_by_torch(torch.device("cpu"))


def test_a_lost_rank_ends_what_the_gpu_does() -> None:
    lost, aborted = threading.Event(), threading.Event()

    class Group:
        is_closed = False

        def check(self) -> None:
            if lost.is_set():
                raise ConnectionError("rank 1 died")

    class Link:
        def __init__(self, group: Group) -> None:
            self._owner = lambda: group

        def abort(self) -> None:
            aborted.set()

    link: Any = Link(Group())
    device_group._watch(link)
    assert not aborted.wait(0.3)
    lost.set()
    assert aborted.wait(5)


def test_the_way_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = command(tmp_path, "env")
    assert "- PyTorch between ranks: CPU tensors by shared memory; " in run.stdout, run.stdout
    run = command(tmp_path, "env", env={"PACELINE_TORCH_DISTRIBUTED": "yes"})
    assert "CPU tensors by torch.distributed (gloo), as PACELINE_TORCH_DIST" in run.stdout
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert report.describe().endswith("2 GPUs, but this PyTorch was built without nccl")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    assert report.describe().endswith("CUDA tensors (2 GPUs) by torch.distributed (nccl 2.27.5)")
