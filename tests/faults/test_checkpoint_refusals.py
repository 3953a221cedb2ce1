# SPDX-License-Identifier: Apache-2.0
"""E2, E3, E4, E8 of the reliability promises: full disks, damaged files, hostile folders, modes."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import saving
from faults.saving import Calls, Tiny, injected
from harness import _paths, run_ranks
from paceline.checkpoint import disk
from paceline.errors import CheckpointError, PacelineError

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def probe() -> Tiny:
    """Another run, to load into. Made first: making a run seeds the generators."""
    return Tiny(seed=9)


@pytest.fixture
def tiny(probe: Tiny) -> Tiny:
    made = Tiny()
    made.step()
    return made


# --- E2: the system refuses -------------------------------------------------------------------


def _refused(tiny: Tiny, place: Path) -> CheckpointError | None:
    try:
        tiny.save(place)
    except CheckpointError as error:
        return error
    return None


@pytest.mark.parametrize("code", saving.REFUSALS, ids=[errno.errorcode[c] for c in saving.REFUSALS])
def test_a_refusal_at_every_call_leaves_the_old_one(
    tmp_path: Path, probe: Tiny, tiny: Tiny, code: int
) -> None:
    place = tmp_path / "place" / "c"
    tiny.save(place)
    old = tiny.digest()
    names = saving.count(tiny, place)
    tiny.save(place)
    refused = 0
    for at, name in enumerate(names, 1):
        before = tiny.digest()
        with injected(Calls(at, saving.fail(code))):
            error = _refused(tiny, place)
        if error is not None:
            refused += 1
            assert error.errno == code, name
            assert os.strerror(code) in str(error)
            assert str(place) in str(error)
            assert error.path.startswith(str(place.parent))
            assert error.free >= 0
            if name == "write":
                assert error.needed >= 0
        assert tiny.digest() == before, "a failed save changed the run"
        assert probe.loaded(place) == old, f"{name}, call {at}"
        tiny.save(place)
        assert os.listdir(place.parent) == ["c"]
    assert refused > 30
    tiny.step()  # training goes on


def _interrupt(name: str, real: Callable[..., object], args: tuple, kwargs: dict) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_at_every_call_leaves_a_whole_one(tmp_path: Path, probe: Tiny, tiny: Tiny) -> None:
    place = tmp_path / "place" / "c"
    tiny.save(place)
    calls = saving.count(tiny, place)
    assert calls.count("write") > 10
    for at in range(1, len(calls)):
        with injected(Calls(at, _interrupt)), pytest.raises(KeyboardInterrupt):
            tiny.save(place)
        assert probe.loaded(place) == tiny.digest()
        tiny.save(place)
        assert os.listdir(place.parent) == ["c"]


def test_short_writes_are_completed(tmp_path: Path, probe: Tiny, tiny: Tiny) -> None:
    class Short(Calls):
        def __getattr__(self, name: str) -> object:
            if name == "write":
                return lambda fd, data: os.write(fd, data[:7])
            return super().__getattr__(name)

    with injected(Short()):
        tiny.save(tmp_path / "c")
    assert probe.loaded(tmp_path / "c") == tiny.digest()


def test_a_limit_of_the_system_is_an_error_with_bytes(
    tmp_path: Path, probe: Tiny, tiny: Tiny
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        error = _refused(tiny, tmp_path / "c")
        assert error is not None
        assert error.errno == errno.EFBIG
        assert error.needed > 4096
        assert "bytes needed" in str(error)

    assert saving.ended(saving.fork(limited)) == 0
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_what_is_needed_and_free(tmp_path: Path) -> None:
    script = """
import paceline as torch
from paceline import Accelerator
from paceline.errors import CheckpointError
accelerator = Accelerator()
model = accelerator.prepare(torch.nn.Linear(100, 100))
accelerator.save_state(PLACE)
model = accelerator.prepare(torch.nn.Linear(1000, 1000))
try:
    accelerator.save_state(PLACE)
except CheckpointError as error:
    assert error.errno == 28 and error.needed > error.free >= 0, (error.needed, error.free)
    print(error)
import os
print(os.listdir(PLACE + '/..'))
"""
    place = tmp_path / "small"
    place.mkdir()
    path = tmp_path / "script.py"
    path.write_text(script.replace("PLACE", repr(str(place / "c"))))
    command = f"mount -t tmpfs -o size=2m none {place} && exec {sys.executable} {path}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert done.stdout.splitlines()[-1] == "['c']"


def body() -> None:
    import os

    import paceline as torch
    from faults import saving
    from paceline import Accelerator
    from paceline.errors import CheckpointError
    from rankside import ARGS, RANK, out

    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(4, 3))
    accelerator.save_state(ARGS["dir"])
    for victim in (0, 1):
        at = 6 if victim == 0 else 2
        calls = saving.Calls(at if RANK == victim else 0, saving.fail(28))
        try:
            with saving.injected(calls):
                accelerator.save_state(ARGS["dir"])
        except CheckpointError as error:
            out([str(error), error.errno, error.path, error.free >= 0])
        accelerator.backward(model(torch.ones(1, 4)).sum())  # training goes on
    accelerator.wait_for_everyone()
    out(sorted(os.listdir(os.path.dirname(ARGS["dir"]))))
    accelerator.load_state(ARGS["dir"])
    accelerator.end_training()


def test_a_refusal_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    results = run_ranks(2, body, args={"dir": str(tmp_path / "c")})
    assert results[0].outs == results[1].outs
    first, second, names = results[0].outs
    assert names == ["c"]
    for victim, (text, code, path, has_free) in enumerate((first, second)):
        assert f"on rank {victim}" in text
        assert "No space left on device" in text
        assert code == errno.ENOSPC
        assert str(tmp_path) in path
        assert has_free


# --- E3: damage -------------------------------------------------------------------------------


def _untouched(probe: Tiny, place: Path, **kwargs: object) -> str:
    before = probe.digest()
    with pytest.raises(CheckpointError) as caught:
        probe.accelerator.load_state(place, **kwargs)
    assert probe.digest() == before, "something was changed before the damage was found"
    return str(caught.value)


def test_200_flipped_bits_are_found_before_anything_is_touched(
    tmp_path: Path, probe: Tiny, tiny: Tiny
) -> None:
    place = tmp_path / "c"
    tiny.save(place)
    files = sorted(place.iterdir())
    rng = random.Random(5)
    for trial in range(200):
        path = files[trial % len(files)]
        content = bytearray(path.read_bytes())
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        good = path.read_bytes()
        path.write_bytes(content)
        assert path.name in _untouched(probe, place)
        path.write_bytes(good)
    assert probe.loaded(place) == tiny.digest()


def test_a_flipped_bit_names_the_tensor(tmp_path: Path, probe: Tiny, tiny: Tiny) -> None:
    tiny.save(tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last tensor is the bias
    path.write_bytes(content)
    assert "tensor '0.bias'" in _untouched(probe, tmp_path / "c")


def test_truncated_missing_and_swapped_files_are_named(
    tmp_path: Path, probe: Tiny, tiny: Tiny
) -> None:
    place = tmp_path / "c"
    tiny.save(place)
    for path in sorted(place.iterdir()):
        good = path.read_bytes()
        path.write_bytes(good[:-3])
        assert path.name in _untouched(probe, place)
        path.unlink()
        assert path.name in _untouched(probe, place)
        other = next(p for p in place.iterdir() if p.name != path.name)
        shutil.copy(other, path)
        assert path.name in _untouched(probe, place)
        path.write_bytes(good)
    # Whole files of another checkpoint, one step later.
    tiny.step()
    tiny.save(tmp_path / "later")
    shutil.copy(tmp_path / "later" / "optimizer.safetensors", place)
    assert "optimizer.safetensors" in _untouched(probe, place)


def test_trap_9_a_missing_random_state_is_an_error(tmp_path: Path, probe: Tiny, tiny: Tiny) -> None:
    tiny.save(tmp_path / "c")
    (tmp_path / "c" / "rank_0.safetensors").unlink()
    assert "rank_0.safetensors" in _untouched(probe, tmp_path / "c")


# --- E4: hostile folders ----------------------------------------------------------------------


def _forge(place: Path, change: Callable[[dict], None]) -> None:
    """Write a manifest with right checksums and another content."""
    body = json.loads((place / "manifest.json").read_text())
    body.pop("checksum")
    change(body)
    lines = json.dumps(body, indent=1).removesuffix("\n}") + ",\n"
    checksum = disk.digest(lines.encode())
    (place / "manifest.json").write_text(f'{lines} "checksum": "{checksum}"\n}}\n')


def _rename_to(name: str) -> Callable[[dict], None]:
    def change(body: dict) -> None:
        body["files"][name] = body["files"].pop("model.safetensors")

    return change


def _set(**values: object) -> Callable[[dict], None]:
    return lambda body: body.update(values)


FORGED = {
    "absolute": (_rename_to("/etc/passwd"), "leads out"),
    "up": (_rename_to("../model.safetensors"), "leads out"),
    "up inside": (_rename_to("a/../../model.safetensors"), "leads out"),
    "empty": (_rename_to(""), "leads out"),
    "nul": (_rename_to("a\0b"), "leads out"),
    "files no object": (_set(files=[1]), "lists no files"),
    "entry no object": (_set(files={"model.safetensors": 3}), "is not one"),
    "version": (_set(version=99), "newer paceline"),
    "format": (_set(format="other"), "is no paceline checkpoint"),
    "negative count": (_set(models=-1), "'models' is -1"),
    "huge count": (_set(world_size=10**12), "'world_size'"),
    "custom": (_set(custom=7), "no list"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_manifests_are_refused(tmp_path: Path, probe: Tiny, tiny: Tiny, name: str) -> None:
    change, text = FORGED[name]
    tiny.save(tmp_path / "c")
    _forge(tmp_path / "c", change)
    assert text in _untouched(probe, tmp_path / "c")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "link in path", "device"])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, probe: Tiny, tiny: Tiny, kind: str
) -> None:
    place = tmp_path / "c"
    tiny.save(place)
    path = place / "model.safetensors"
    path.rename(tmp_path / "outside")
    name = "model.safetensors"
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link in path":
        (tmp_path / "out").mkdir()
        (tmp_path / "outside").rename(tmp_path / "out" / name)
        (place / "in").symlink_to(tmp_path / "out")
        _forge(place, _rename_to("in/model.safetensors"))
        _forge(place, lambda body: body["files"].update({name: body["files"]["in/" + name]}))
        (tmp_path / "out" / name).rename(path)
        path.rename(place / "x")
    else:
        try:
            os.mknod(path, 0o600 | 0o20000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("this machine lets nobody make a device")
    assert name in _untouched(probe, place)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, probe: Tiny, tiny: Tiny) -> None:
    (tmp_path / "c").write_text("x")
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        tiny.save(tmp_path / "c")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        tiny.accelerator.load_state(tmp_path / "c")
    with pytest.raises(ValueError, match="folder does not exist"):
        tiny.accelerator.load_state(tmp_path / "nothing")


# --- E8: modes --------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_holds_for_every_file_alike(
    tmp_path: Path, probe: Tiny, tiny: Tiny, mask: int
) -> None:
    before = os.umask(mask)
    try:
        tiny.save(tmp_path / "c")
        tiny.accelerator.save_model(tiny.model, tmp_path / "m")
    finally:
        os.umask(before)
    for folder in (tmp_path / "c", tmp_path / "m"):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}


def test_errors_are_caught_by_their_built_in_names() -> None:
    assert issubclass(CheckpointError, (PacelineError, OSError, RuntimeError))
