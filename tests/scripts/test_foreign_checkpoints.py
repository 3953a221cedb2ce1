# SPDX-License-Identifier: Apache-2.0
"""Folders that Accelerate itself wrote load here; hostile ones of that form are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import paceline as torch
from paceline import Accelerator
from paceline.errors import CheckpointError

SCRIPT = """
import json, sys, torch
from accelerate import Accelerator
torch.manual_seed(3)
accelerator = Accelerator(cpu=True)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
model[1].weight = torch.nn.Parameter(model[1].weight)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
class Box:
    def state_dict(self): return {"n": 7, "tensor": torch.ones(2)}
    def load_state_dict(self, state): pass
accelerator.register_for_checkpointing(Box())
for _ in range(3):
    accelerator.backward((model(torch.ones(2, 3)) ** 2).sum())
    optimizer.step(); scheduler.step(); optimizer.zero_grad()
place = sys.argv[1]
accelerator.save_state(place + "/safe")
accelerator.save_state(place + "/bin", safe_serialization=False)
accelerator.save_model(model, place + "/shards", max_shard_size=100)
values = {
    "weights": [p.tolist() for p in model.parameters()],
    "moments": [s["exp_avg"].tolist() for s in optimizer.state_dict()["state"].values()],
    "steps": [float(s["step"]) for s in optimizer.state_dict()["state"].values()],
    "lr": scheduler.get_last_lr(),
}
json.dump(values, open(place + "/values.json", "w"))
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate")
    place = tmp_path_factory.mktemp("accelerate")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, "-c", SCRIPT, str(place)], check=True, env=env, timeout=110)
    return place


pytestmark = pytest.mark.usefixtures("one_process")


class Box:
    value: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state


class Ours:
    """The same run as SCRIPT's, of paceline's own tensors."""

    def __init__(self) -> None:
        self.accelerator = Accelerator()
        layers = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.accelerator.prepare(self.model, self.optimizer, self.scheduler)
        self.box = Box()
        self.accelerator.register_for_checkpointing(self.box)

    def values(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()["state"].values()
        return {
            "weights": [p.tolist() for p in self.model.parameters()],
            "moments": [s["exp_avg"].tolist() for s in state],
            "steps": [float(s["step"].item()) for s in state],
            "lr": self.scheduler.get_last_lr(),
        }


@pytest.mark.parametrize("kind", ["safe", "bin"])
def test_a_folder_of_accelerates_loads(
    theirs: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Ours()
    ours.accelerator.load_state(theirs / kind)
    assert ours.values() == json.loads((theirs / "values.json").read_text())
    assert ours.box.value["n"] == 7
    assert ours.box.value["tensor"].tolist() == [1, 1]
    assert "was written by Accelerate" in caplog.text
    drawn = torch.rand(2).tolist()
    ours.accelerator.load_state(theirs / kind)
    assert torch.rand(2).tolist() == drawn, "what the random state follows from is the folder"


def test_sharded_weights_load(theirs: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    (place / "model.safetensors").unlink()
    for path in (theirs / "shards").iterdir():
        shutil.copy(path, place)
    assert (place / "model.safetensors.index.json").exists()
    ours = Ours()
    ours.accelerator.load_state(place)
    assert ours.values()["weights"] == json.loads((theirs / "values.json").read_text())["weights"]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch TOUCHED",)


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "scheduler.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"]
)
def test_evil_pickles_are_refused(
    theirs: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    (place / name).write_bytes(pickle.dumps(Evil()))
    ours = Ours()
    before = ours.values()
    with pytest.raises(CheckpointError, match=rf"{name}.*posix.system, which is refused"):
        ours.accelerator.load_state(place)
    assert ours.values() == before
    assert os.listdir(tmp_path) == ["c"]


def test_trap_1_16_9_a_missing_random_state_is_an_error(theirs: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    (place / "random_states_0.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="random_states_0.pkl"):
        Ours().accelerator.load_state(place)
    (place / "random_states_0.pkl").unlink()
    with pytest.raises(CheckpointError, match="random_states_0.pkl"):
        Ours().accelerator.load_state(place)


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../outside.safetensors", "link", "pipe", "folder", "a/../../x", ""]
)
def test_an_index_leads_nowhere_else(theirs: Path, tmp_path: Path, shard: str) -> None:
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    (place / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (place / "link").symlink_to(tmp_path / "outside.safetensors")
    os.mkfifo(place / "pipe")
    (place / "folder").mkdir()
    index = {"weight_map": {"0.weight": shard}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leads out|no regular file"):
        Ours().accelerator.load_state(place)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "x"]
)
def test_an_index_that_is_none(theirs: Path, tmp_path: Path, index: str) -> None:
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    (place / "model.safetensors").unlink()
    (place / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Ours().accelerator.load_state(place)


def test_tied_weights_that_are_written_once(theirs: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(theirs / "safe", place)
    accelerator = Accelerator()
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    accelerator.prepare(model)
    for name in ("optimizer.bin", "scheduler.bin", "custom_checkpoint_0.pkl"):
        (place / name).unlink()
    safetensors = pytest.importorskip("safetensors.numpy")
    import numpy

    weight, bias = numpy.ones((4, 4), "float32"), numpy.zeros(4, "float32")
    safetensors.save_file({"0.weight": weight, "1.bias": bias}, place / "model.safetensors")
    accelerator.load_state(place)
    assert model[1].weight.tolist() == weight.tolist()
