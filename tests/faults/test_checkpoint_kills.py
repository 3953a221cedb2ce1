# SPDX-License-Identifier: Apache-2.0
"""E1 of the reliability promises: killed at any moment of a save, there is one whole checkpoint.

The process is killed before every call that touches the disk and in the middle of every write, in
a new folder and over an old checkpoint, with and without RENAME_EXCHANGE; then at random moments,
and with two ranks, either being the victim. What is loaded afterwards is the old run or the new
one, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import paceline
from faults import saving
from faults.saving import Calls, Tiny, injected
from harness import run_ranks
from paceline.checkpoint import sharded
from paceline.checkpoint.folder import Place
from paceline.checkpoint.sharded import save_weights
from paceline.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("one_process")


class Scene:
    """A run at two moments: ``old`` is in a checkpoint, ``new`` is about to be saved over it."""

    def __init__(self, tmp_path: Path) -> None:
        self.kept = tmp_path / "kept"
        self.dir = tmp_path / "place" / "checkpoint"
        self.kept_new = tmp_path / "kept_new"
        self.probe = Tiny(seed=9)  # first: making a run seeds the generators
        self.tiny = Tiny()
        self.tiny.step()
        self.tiny.save(self.kept)
        self.old = self.tiny.digest()
        self.tiny.step()
        self.tiny.save(self.kept_new)
        self.new = self.tiny.digest()

    def reset(self, overwrite: bool) -> None:
        shutil.rmtree(self.dir.parent, ignore_errors=True)
        self.dir.parent.mkdir()
        if overwrite:
            shutil.copytree(self.kept, self.dir)
            (self.dir / "log.txt").write_text("a file of the script's own")

    def check(self, overwrite: bool) -> str:
        """What is there is old or new; says which. Nothing at all only where nothing was."""
        try:
            found = self.probe.loaded(self.dir)
        except ValueError:
            assert not overwrite, "the old checkpoint is gone"
            return "none"
        assert found in (self.old, self.new), "neither the old run nor the new one"
        if overwrite:
            place = self.dir  # a folder beside it may be going away under a saver that lives
            if not place.exists():
                place = next(self.dir.parent.glob("checkpoint*/log.txt")).parent
            assert (place / "log.txt").read_text() == "a file of the script's own"
        return "new" if found == self.new else "old"

    def check_next_save(self) -> None:
        """A later save takes away what the dead one left."""
        self.tiny.save(self.dir)
        assert os.listdir(self.dir.parent) == ["checkpoint"]
        assert self.probe.loaded(self.dir) == self.new


def _killed_everywhere(
    scene: Scene, overwrite: bool, can_exchange: bool, act: Callable[..., None], only: str = ""
) -> list[str]:
    scene.reset(overwrite)
    names = saving.count(scene.tiny, scene.dir, can_exchange)
    found = []
    for at, name in enumerate(names, 1):
        if only and name != only:
            continue
        scene.reset(overwrite)

        def save(at: int = at) -> None:
            with injected(Calls(at, act), can_exchange):
                scene.tiny.save(scene.dir)

        assert saving.ended(saving.fork(save)) == -signal.SIGKILL
        found.append(scene.check(overwrite))
        if at % 7 == 0:
            scene.check_next_save()
    return found


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "over"])
@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "rename"])
def test_kill_at_every_call(tmp_path: Path, overwrite: bool, can_exchange: bool) -> None:
    scene = Scene(tmp_path)
    found = _killed_everywhere(scene, overwrite, can_exchange, saving.kill)
    assert len(found) > 40, "too few calls were counted for this to mean anything"
    # One moment turns the old into the new, and there is no way back.
    before = "old" if overwrite else "none"
    turn = found.index("new")
    assert found == [before] * turn + ["new"] * (len(found) - turn)


def test_kill_in_the_middle_of_every_write(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert set(_killed_everywhere(scene, True, True, saving.kill_half_way, "write")) == {"old"}


def _weights_found(folder: Path) -> object:
    """What a reader of the field finds: all of one set, by its index or as one file."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        names = {"model.safetensors"} if (folder / "model.safetensors").exists() else set()
    else:
        names = set(json.loads(index.read_text())["weight_map"].values())
    found = {}
    for name in sorted(names):
        found |= {key: t.tolist() for key, t in paceline.load(folder / name).items()}
    return found or None


@pytest.mark.parametrize("can_rename", [True, False], ids=["renamed", "stays"])
def test_kill_at_every_call_of_save_model_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_rename: bool
) -> None:
    """Shards of one model over shards of another: one of the two, or for a folder that cannot be
    renamed, maybe none.
    """
    if not can_rename:
        monkeypatch.setattr(sharded, "_can_be_replaced", lambda folder: False)
    folder = tmp_path / "place" / "model"
    old = {f"w{i}": paceline.full((40,), float(i)) for i in range(5)}
    new = {name: t + 10 for name, t in old.items()}
    expected = [{name: t.tolist() for name, t in one.items()} for one in (old, new)]

    def begin() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        save_weights(old, str(folder), 200)
        (folder / "config.json").write_text("{}")

    def found_after(at: int) -> object:
        def save() -> None:
            with injected(Calls(at, saving.kill)):
                save_weights(new, str(folder), 200)

        begin()
        assert saving.ended(saving.fork(save)) == (-signal.SIGKILL if at else 0)
        assert (folder / "config.json").read_text() == "{}"
        return _weights_found(folder)

    begin()
    with injected(Calls()) as calls:
        save_weights(new, str(folder), 200)
    assert len(calls.names) > 20
    assert len(list(folder.glob("model-*"))) == 5
    seen = [found_after(at) for at in range(1, len(calls.names) + 1)]
    assert seen[0] == expected[0]
    assert found_after(0) == expected[1]
    assert all(one in expected or (one is None and not can_rename) for one in seen)
    assert (None in seen) == (not can_rename)
    assert sorted(os.listdir(folder.parent)) == ["model"]


def test_kill_9_at_50_random_moments(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.reset(True)
    begin = time.monotonic()
    scene.tiny.save(scene.dir)
    whole = time.monotonic() - begin
    rng = random.Random(4)

    def forever() -> None:
        while True:
            scene.tiny.save(scene.dir)

    found = []
    for trial in range(50):
        scene.reset(trial % 2 == 0)
        pid = saving.fork(forever)
        time.sleep(rng.uniform(0, 2 * whole))
        os.kill(pid, signal.SIGKILL)
        assert saving.ended(pid) == -signal.SIGKILL
        found.append(scene.check(trial % 2 == 0))
    scene.check_next_save()
    assert "new" in found


def body() -> None:
    import os

    import paceline as torch
    from faults import saving
    from paceline import Accelerator
    from rankside import ARGS, RANK, failing, mark, out

    torch.manual_seed(1)
    accelerator = Accelerator()
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)

    def digest() -> list:
        return [p.tolist() for p in model.parameters()]

    def step() -> None:
        accelerator.backward(model(torch.ones(2, 4) * (RANK + 1)).sum())
        optimizer.step()
        optimizer.zero_grad()

    step()
    if ARGS.get("load"):
        accelerator.load_state(ARGS["dir"])
        out(digest())
        accelerator.end_training()
        return
    accelerator.save_state(ARGS["dir"])
    out(digest())
    step()
    out(digest())
    mark("saving")
    at = ARGS["at"] if RANK == ARGS["victim"] else 0
    with saving.injected(saving.Calls(at, saving.kill)), failing():
        accelerator.save_state(ARGS["dir"])
        os._exit(0)


CALLS_OF_A_RANK = {0: 60, 1: 3}  # rank 1 writes one file: open, write twice, fsync, close


def _two_ranks(tmp_path: Path, victim: int, at: int) -> None:
    place = str(tmp_path / f"{victim}-{at}")
    args = {"dir": place, "victim": victim, "at": at}
    results = run_ranks(2, body, args=args, expect={victim: -signal.SIGKILL})
    survivor = results[1 - victim]
    assert survivor.exception["type"] in ("PeerLostError", "CheckpointError")
    old, new = survivor.outs
    for result in run_ranks(2, body, args={"dir": place, "load": True}):
        assert result.outs in ([old], [new])


@pytest.mark.parametrize(("victim", "at"), [(0, 1), (0, 20), (0, 37), (1, 1), (1, 3)])
def test_two_ranks_either_killed(tmp_path: Path, victim: int, at: int) -> None:
    _two_ranks(tmp_path, victim, at)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_killed_at_every_call(tmp_path: Path) -> None:
    for victim, n in CALLS_OF_A_RANK.items():
        for at in range(1, n + 1):
            try:
                _two_ranks(tmp_path, victim, at)
            except AssertionError as error:
                if "exit codes" in str(error) and at > 40:
                    return  # past the last call of a save
                raise


def test_a_rank_that_is_killed_in_save_state_leaves_no_temporary_folder(tmp_path: Path) -> None:
    place = tmp_path / "c"
    args = {"dir": str(place), "victim": 1, "at": 2}
    run_ranks(2, body, args=args, expect={1: -signal.SIGKILL})
    assert not saving.leftovers(tmp_path)


def test_a_folder_that_is_being_saved_names_the_process(tmp_path: Path) -> None:
    tiny = Tiny()
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        place = Place(tmp_path / "c")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        place.give_up()

    pid = saving.fork(hold)
    os.read(ready[0], 1)
    with pytest.raises(CheckpointError, match=rf"being saved by another process \(pid {pid}\)"):
        tiny.save(tmp_path / "c")
    os.write(go[1], b"x")
    saving.ended(pid)
    tiny.save(tmp_path / "c")
    for fd in (*ready, *go):
        os.close(fd)


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.reset(True)

    def in_turn() -> None:
        while True:
            for kept in (scene.kept_new, scene.kept):
                scene.tiny.accelerator.load_state(kept)
                scene.tiny.save(scene.dir)

    pid = saving.fork(in_turn)
    try:
        found = {scene.check(True) for _ in range(60)}
    finally:
        os.kill(pid, signal.SIGKILL)
        saving.ended(pid)
    assert found == {"old", "new"}
