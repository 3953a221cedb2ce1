# SPDX-License-Identifier: Apache-2.0
"""``paceline test`` passes on a sound machine and names what is wrong on another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import harness
from launching import command

SUCCESS = "Test is a success! You are ready for your distributed training!"


@pytest.mark.parametrize("words", [("--num_processes", "1"), (), ("-n", "3", "--cpu")])
def test_passes(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = command(tmp_path, "test", *words, env={"HF_HOME": str(tmp_path)})
    assert run.code == 0, run.stderr
    assert SUCCESS in run.stdout
    world = int(words[1]) if words else 2
    assert f"ok: {world} of {world} processes take part" in run.stdout


def test_takes_the_number_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "accelerate"
    folder.mkdir()
    (folder / "default_config.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 1\n")
    run = command(tmp_path, "test", env={"HF_HOME": str(tmp_path)})
    assert "ok: 1 of 1 processes take part" in run.stdout


# What a broken reduction looks like: loaded into every process before the script.
BREAKS = {
    "summed": (
        "from paceline import _C\nreal = _C.Reducer\n"
        "_C.Reducer = lambda *args: real(*args[:-1], 0)\n",  # 0: SUM
        "gradients are not averaged",
    ),
    "not reduced": (
        "from paceline.engines import native\n"
        "native.NativeEngine.gradient_sync = lambda *args: None\n",
        "gradients are not averaged",
    ),
    "one rank's own": (
        "from paceline.engines import native\n"
        "native.NativeEngine.all_reduce = lambda self, tensor, op, group: tensor\n",
        "sum over the processes: got",
    ),
}


@pytest.mark.parametrize("how", BREAKS)
def test_names_a_reduction_that_was_broken_on_purpose(tmp_path: Path, how: str) -> None:
    code, message = BREAKS[how]
    (tmp_path / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *harness._paths()])
    run = command(tmp_path, "test", "--num_processes", "2", env={"PYTHONPATH": path})
    assert run.code == 1
    assert message in run.stderr
    assert SUCCESS not in run.stdout


def test_help_and_wrong_options(tmp_path: Path) -> None:
    assert "usage: paceline test" in command(tmp_path, "test", "--help").stdout
    assert command(tmp_path, "test", "--num_processes", "0").code == 2
