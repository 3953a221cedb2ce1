# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that write and read files, over every way in and 1, 2, 3 ranks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import paceline
from paceline import Accelerator
from paceline.checkpoint.sharded import size_in_bytes
from paceline.errors import CheckpointError
from paceline.utils import ProjectConfiguration
from ways import run_ways


class Box:
    """Something with a state."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


# --- on several ranks -------------------------------------------------------------------------


def _everything() -> None:
    import os
    import random

    import numpy as np

    from paceline import Accelerator
    from paceline.utils import ProjectConfiguration, set_seed
    from rankside import ARGS, RANK, WORLD, out
    from ways import torch

    project = ProjectConfiguration(ARGS["dir"], automatic_checkpoint_naming=True, total_limit=2)
    accelerator = Accelerator(project_config=project)
    set_seed(5, device_specific=True)
    models = [torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in models]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in optimizers]
    prepared = accelerator.prepare(*models, *optimizers, *schedulers)
    a, b = prepared[:2]

    class Box:
        value: object = None

        def state_dict(self) -> dict:
            return {"value": self.value, "array": np.arange(3), "kinds": {1, 2}}

        def load_state_dict(self, state: dict) -> None:
            assert state["array"].tolist() == [0, 1, 2]
            assert state["kinds"] == {1, 2}
            self.value = state["value"]

    box = Box()
    accelerator.register_for_checkpointing(box)

    def train() -> None:
        accelerator.backward(b(a(torch.randn(4, 3))).sum())
        for thing in prepared[2:]:
            thing.step()
        for optimizer in prepared[2:4]:
            optimizer.zero_grad()

    def all_of_it() -> list:
        weights = [p.tolist() for m in models for p in m.state_dict().values()]
        moments = [
            v.tolist()
            for o in optimizers
            for s in o.state_dict()["state"].values()
            for v in s.values()
        ]
        rates = [s.get_last_lr() for s in schedulers]
        return [weights, moments, rates, box.value]

    def draw() -> list:
        numpy = float(np.random.random())  # noqa: NPY002 (the generator whose state is saved)
        return [random.random(), numpy, torch.rand(2).tolist()]

    train()
    box.value = {"tensor": torch.ones(2), "list": [1, None, "x"]}
    before, path = all_of_it(), str(accelerator.save_state())
    assert path == os.path.join(ARGS["dir"], "checkpoints", "checkpoint_0"), path
    assert accelerator.save_iteration == 1
    drawn = draw()
    hooked = []

    def saving(models: list, weights: list, output_dir: str) -> None:
        hooked.append((len(models), len(weights)))
        if RANK == 0:
            os.mkdir(os.path.join(output_dir, "extra"))
            with open(os.path.join(output_dir, "extra", "note.txt"), "w") as file:
                file.write("from a hook")
        weights.pop()

    def loading(models: list, input_dir: str) -> None:
        with open(os.path.join(input_dir, "extra", "note.txt")) as file:
            hooked.append(file.read())
        models.pop()

    handles = [
        accelerator.register_save_state_pre_hook(saving),
        accelerator.register_load_state_pre_hook(loading),
    ]
    train()
    box.value = 3
    accelerator.save_state()
    trained = all_of_it()
    train()
    later = [p.tolist() for p in b.parameters()]
    accelerator.load_state()  # the newest; its hook left out the second model
    now = all_of_it()
    assert now[0][:2] == trained[0][:2]
    assert now[0][2:] == later
    assert now[1:] == trained[1:]
    assert hooked == [(2, 2), "from a hook"]
    for handle in handles:
        handle.remove()
    accelerator.load_state(os.path.join(ARGS["dir"], "checkpoints", "checkpoint_0"))
    assert draw() == drawn, "random states differ"
    value = box.value
    assert value["list"] == [1, None, "x"]
    assert type(value["tensor"]) is type(torch.ones(1))
    box.value = before[-1]
    assert all_of_it() == before
    accelerator.save_iteration = 2
    for _ in range(3):
        accelerator.save_state()
    accelerator.wait_for_everyone()
    names = sorted(os.listdir(os.path.join(ARGS["dir"], "checkpoints")))
    assert names == ["checkpoint_3", "checkpoint_4"], names
    accelerator.save_model(a, os.path.join(ARGS["dir"], "model"))
    accelerator.save(accelerator.get_state_dict(a), os.path.join(ARGS["dir"], "a.safetensors"))
    assert accelerator.should_save_model == (RANK == 0)
    accelerator.wait_for_everyone()
    import paceline

    for name in ("a.safetensors", "model/model.safetensors"):
        again = paceline.load(os.path.join(ARGS["dir"], name))
        assert again["weight"].tolist() == a.state_dict()["weight"].tolist()
    out(WORLD)
    accelerator.end_training()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_everything_comes_back_on_every_rank(way: str, world: int, tmp_path: Path) -> None:
    results = run_ways(way, world, _everything, args={"dir": str(tmp_path)}, timeout=100)
    assert [result.outs for result in results] == [[world]] * world


def _alone() -> None:
    from paceline import Accelerator
    from rankside import ARGS, RANK, failing
    from ways import torch

    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    with failing():
        if accelerator.is_main_process:
            getattr(accelerator, ARGS["op"])(ARGS["dir"])
        accelerator.backward(model(torch.ones(1, 2) * RANK).sum())


@pytest.mark.parametrize("op", ["save_state", "load_state"])
def test_sec3_row_2_on_the_main_process_only_is_an_error_at_once(op: str, tmp_path: Path) -> None:
    args = {"dir": str(tmp_path / "c"), "op": op}
    results = run_ways("native", 2, _alone, args=args, timeout=20)
    for result in results:
        error = result.exception
        assert error["type"] == "CollectiveMismatchError", error
        rows = [line for line in error["text"].splitlines() if "rank=" in line]
        assert [row.strip()[:7] for row in rows] == ["rank=0,", "rank=1,"]
        assert "at script.py:" in rows[0]
    assert f"{op} is called on all ranks together" in results[0].exception["notes"][0]
    assert not os.path.exists(tmp_path / "c")


def _elsewhere() -> None:
    """Saves in the middle of an epoch, or goes on from there with other processes."""
    from paceline import Accelerator
    from paceline.utils import set_seed
    from rankside import ARGS, out
    from ways import torch

    set_seed(5, device_specific=ARGS["specific"])
    accelerator = Accelerator(gradient_accumulation_steps=4)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.arange(48).float().unsqueeze(1))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    seen = []

    def train(stop: int | None) -> None:
        for at, (x,) in enumerate(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(x).mean())
                optimizer.step()
                optimizer.zero_grad()
            seen.extend(x.flatten().tolist())
            if at == stop:
                accelerator.save_state(ARGS["dir"])
                break

    def gradient() -> list:
        """Mean over the ranks of what was accumulated so far."""
        own = torch.tensor(model.weight.grad.flatten().tolist())
        return accelerator.reduce(own, "mean").tolist()

    def weights() -> list:
        moments = [v.tolist() for s in optimizer.state_dict()["state"].values() for v in s.values()]
        return [[p.tolist() for p in model.parameters()], moments]

    if ARGS["load"]:
        accelerator.load_state(ARGS["dir"])
    else:
        train(4)  # one batch into the second window
    state = [weights(), gradient(), torch.rand(1).tolist()]
    if ARGS["load"]:
        train(None)
    out([seen, *state])
    accelerator.end_training()


@pytest.mark.parametrize(("saved", "loaded"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_processes_sees_each_remaining_sample_once(
    saved: int, loaded: int, tmp_path: Path
) -> None:
    args = {"dir": str(tmp_path / "c"), "load": False, "specific": True}
    before = run_ways("native", saved, _elsewhere, args=args)
    after = run_ways("native", loaded, _elsewhere, args={**args, "load": True})
    seen = [x for result in (*before, *after) for x in result.outs[0][0]]
    assert sorted(set(seen)) == list(range(48))
    assert len(seen) <= 48 + 2 * loaded, "more than the last round was completed"
    for result in after:
        assert result.outs[0][1] == before[0].outs[0][1], "weights and optimizer are exact"
        assert result.outs[0][2] == pytest.approx(before[0].outs[0][2], rel=1e-6), "gradients"
    draws = [result.outs[0][3] for result in after]
    for one, other in zip(draws, [result.outs[0][3] for result in before], strict=False):
        assert one == other, "a rank that was there goes on with its own random state"
    assert len({tuple(d) for d in draws}) == loaded
    assert f"the checkpoint is of {saved} processes, this run has {loaded}" in after[0].stderr


# --- names and arguments ----------------------------------------------------------------------


def test_trap_1_16_10_the_old_one_goes_only_after_the_new_one_is_whole(
    torch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = ProjectConfiguration(tmp_path, automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(project_config=project)
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.save_state()
    from paceline.checkpoint import disk

    monkeypatch.setattr(disk, "rename", _refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        accelerator.save_state()
    monkeypatch.undo()
    assert os.listdir(tmp_path / "checkpoints") == ["checkpoint_0"]
    accelerator.load_state()
    accelerator.save_state()
    assert os.listdir(tmp_path / "checkpoints") == ["checkpoint_1"]
    assert model is not None


def _refuse(old: str, new: str) -> None:
    raise OSError(28, os.strerror(28), new)


def test_trap_1_16_8_a_fresh_job_goes_on_in_its_epoch(torch: ModuleType, tmp_path: Path) -> None:
    def loader(accelerator: Accelerator) -> object:
        torch.manual_seed(3)
        data = torch.utils.data.TensorDataset(torch.arange(12))
        return accelerator.prepare(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))

    accelerator = Accelerator()
    first = loader(accelerator)
    epochs = [[x.tolist() for (x,) in first] for _ in range(3)]
    accelerator.save_state(tmp_path / "c")
    fresh = Accelerator()
    again = loader(fresh)
    fresh.load_state(tmp_path / "c")
    following = [x.tolist() for (x,) in again]
    assert following not in epochs
    assert following == [x.tolist() for (x,) in first]


def test_automatic_names_and_their_errors(torch: ModuleType, tmp_path: Path) -> None:
    plain = Accelerator()
    with pytest.raises(ValueError, match="no output_dir"):
        plain.save_state()
    with pytest.raises(ValueError, match="No input_dir provided and automatic checkpoint naming"):
        plain.load_state()
    nowhere = Accelerator(project_config=ProjectConfiguration(automatic_checkpoint_naming=True))
    with pytest.raises(ValueError, match="needs a project_dir"):
        nowhere.save_state()
    project = ProjectConfiguration(tmp_path, automatic_checkpoint_naming=True)
    accelerator = Accelerator(project_config=project)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        accelerator.load_state()
    accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.save_state()
    accelerator.save_iteration = 0
    with pytest.raises(ValueError, match="already exists. Please manually override"):
        accelerator.save_state()


def test_load_state_takes_the_newest_whole_one(
    torch: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = ProjectConfiguration(tmp_path, automatic_checkpoint_naming=True)
    accelerator = Accelerator(project_config=project)
    accelerator.prepare(torch.nn.Linear(2, 2))
    box = Box()
    accelerator.register_for_checkpointing(box)
    for value in range(11):  # 10 sorts after 9 by number only
        box.value = value
        accelerator.save_state()
    accelerator.load_state()
    assert box.value == 10
    (tmp_path / "checkpoints" / "checkpoint_10" / "manifest.json").unlink()
    shutil.copytree(
        tmp_path / "checkpoints" / "checkpoint_9",
        tmp_path / "checkpoints" / "checkpoint_8.tmp-0123abcd",
    )
    accelerator.load_state()
    assert box.value == 9
    assert "checkpoint_10 is not whole and was passed over" in caplog.text
    assert accelerator.save_iteration == 10


def test_unknown_arguments_are_refused(torch: ModuleType, tmp_path: Path) -> None:
    accelerator = Accelerator()
    accelerator.prepare(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"\[save_state\] unknown arguments: got tag"):
        accelerator.save_state(tmp_path / "c", tag=1)
    accelerator.save_state(tmp_path / "c")
    with pytest.raises(TypeError, match=r"\[load_state\] unknown arguments: got tag"):
        accelerator.load_state(tmp_path / "c", tag=1)
    with pytest.raises(TypeError, match="Unsupported optimizer map location"):
        accelerator.load_state(tmp_path / "c", map_location="cuda")
    accelerator.load_state(tmp_path / "c", load_kwargs={}, map_location="on_device", strict=True)


def test_bad_items_are_listed() -> None:
    with pytest.raises(ValueError, match=r"(?s)index 0, int.*index 2, str") as caught:
        Accelerator().register_for_checkpointing(1, Box(), "x")
    assert "index 1" not in str(caught.value)


def test_what_does_not_fit_is_named_and_nothing_is_changed(
    torch: ModuleType, tmp_path: Path
) -> None:
    def run(sizes: list[int], boxes: int = 0, optimizers: int = 0, loaders: int = 0) -> Accelerator:
        accelerator = Accelerator()
        models = [torch.nn.Linear(size, 2) for size in sizes]
        for model in models:
            accelerator.prepare(model)
        for model in models[:optimizers]:
            accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
        data = torch.utils.data.TensorDataset(torch.arange(4))
        for _ in range(loaders):
            accelerator.prepare(torch.utils.data.DataLoader(data))
        accelerator.register_for_checkpointing(*(Box(at) for at in range(boxes)))
        return accelerator

    run([3, 4], boxes=1, optimizers=1).save_state(tmp_path / "c")
    for other, text in (
        (run([3], 1, 1), "number of models differs: the checkpoint has 2, this run has 1"),
        (run([3, 4], 2, 1), "number of custom checkpoints differs"),
        (run([3, 4], 1, 2), "number of optimizers differs"),
        (run([3, 4], 1, 1, loaders=1), "number of data loaders differs: the checkpoint has 0"),
        (run([3, 5], 1, 1), r"model 1 \(Linear\): weight has shape \[2, 4\]"),
    ):
        before = [p.tolist() for model in other._models for p in model.parameters()]
        with pytest.raises(CheckpointError, match=text):
            other.load_state(tmp_path / "c")
        assert [p.tolist() for model in other._models for p in model.parameters()] == before


def test_strict_is_for_names(torch: ModuleType, tmp_path: Path) -> None:
    saved, other = Accelerator(), Accelerator()
    first = saved.prepare(torch.nn.Linear(2, 2, bias=False))
    saved.save_state(tmp_path / "c")
    model = other.prepare(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint \['bias'\]"):
        other.load_state(tmp_path / "c")
    other.load_state(tmp_path / "c", strict=False)
    assert model.weight.tolist() == first.weight.tolist()


def test_what_cannot_be_saved_is_named(torch: ModuleType, tmp_path: Path) -> None:
    accelerator = Accelerator()
    accelerator.register_for_checkpointing(Box({"deep": [object()]}))
    with pytest.raises(CheckpointError, match=r"custom_checkpoint_0.*\['deep'\]\[0\].*object"):
        accelerator.save_state(tmp_path / "c")
    assert not os.path.exists(tmp_path / "c")


# --- save_model -------------------------------------------------------------------------------


def test_save_model_in_shards(torch: ModuleType, tmp_path: Path) -> None:
    from paceline.checkpoint.disk import OpenFolder
    from paceline.checkpoint.foreign import read_weights

    accelerator = Accelerator()
    layers = [torch.nn.Linear(10, 10) for _ in range(6)]
    model = accelerator.prepare(torch.nn.Sequential(*layers))
    (tmp_path / "config.json").write_text("{}")
    accelerator.save_model(model, tmp_path, max_shard_size="1KB")
    names = sorted(p.name for p in tmp_path.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    count = len(shards)
    assert shards == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 110 * 4
    assert set(index["weight_map"]) == set(model.state_dict())
    with OpenFolder(str(tmp_path)) as folder:
        again = read_weights(folder)
    for name, value in model.state_dict().items():
        assert again[name].tolist() == value.tolist()
    # A smaller set of shards, then a single file: stale ones go, other files stay.
    accelerator.save_model(model, tmp_path, max_shard_size=2000)
    fewer = [p.name for p in tmp_path.glob("model-*")]
    assert 1 < len(fewer) < count
    accelerator.save_model(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(tmp_path / "model.safetensors")
    assert theirs["0.weight"].tolist() == model.state_dict()["0.weight"].tolist()


def test_save_model_refuses_a_file_and_a_checkpoint(torch: ModuleType, tmp_path: Path) -> None:
    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        accelerator.save_model(model, tmp_path / "file")
    accelerator.save_state(tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds a checkpoint"):
        accelerator.save_model(model, tmp_path / "c")


@pytest.mark.parametrize(
    ("size", "count"),
    [("10GB", 10**10), ("5MB", 5 * 10**6), ("1.5KiB", 1536), (7, 7), ("12", 12), ("1 TB", 10**12)],
)
def test_sizes(size: int | str, count: int) -> None:
    assert size_in_bytes(size) == count


@pytest.mark.parametrize("size", ["", "GB", "-1MB", "0", "5 bananas"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        size_in_bytes(size)


def test_a_script_s_own_files_stay(torch: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "out"
    (place / "logs").mkdir(parents=True)
    log = (place / "logs" / "run.txt").open("a")
    log.write("one ")
    (place / "latest").symlink_to("logs")
    accelerator = Accelerator()
    accelerator.prepare(torch.nn.Linear(2, 2))
    for _ in range(3):
        accelerator.save_state(place)
    log.write("two")
    log.close()
    assert (place / "logs" / "run.txt").read_text() == "one two"
    assert os.readlink(place / "latest") == "logs"
    accelerator.load_state(place)
    link = tmp_path / "link"
    link.symlink_to(place)
    accelerator.save_state(link)
    assert link.is_symlink()
    assert paceline.load(place / "model.safetensors").keys() == {"weight", "bias"}
