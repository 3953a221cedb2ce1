# SPDX-License-Identifier: Apache-2.0
"""A script as Accelerate's documentation writes them: ours, beside Accelerate's own run of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "examples" / "torch_classifier.py"
LAUNCH = ("-m", "paceline.commands.launch", "--num_processes")


def run(*command: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env["PYTHONPATH"] = os.pathsep.join([*harness._paths(), env.get("PYTHONPATH", "")])
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracies(text: str) -> list[float]:
    found = [float(value) for value in re.findall(r"accuracy ([\d.]+)", text)]
    assert found, text
    return found


@pytest.mark.parametrize("n", [1, 2])
def test_it_learns_and_resumes_to_the_same_bits(tmp_path: Path, n: int) -> None:
    script = (*LAUNCH, str(n), str(SCRIPT))
    whole = accuracies(run(*script, "--output_dir", "whole", cwd=tmp_path))
    assert len(whole) == 3
    assert max(whole) > 75
    again = ("--output_dir", "again", "--resume_from_checkpoint", "whole/epoch_0")
    assert accuracies(run(*script, *again, cwd=tmp_path)) == whole[1:]
    weights = [(tmp_path / name / "weights.pt").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


@pytest.fixture
def unedited(tmp_path: Path) -> Path:
    """The script with Accelerate's import lines."""
    text = SCRIPT.read_text()
    assert text.count("from paceline") == 2
    path = tmp_path / "train.py"
    path.write_text(text.replace("from paceline", "from accelerate"))
    return path


def test_unedited_it_runs_as_accelerate(tmp_path: Path, unedited: Path) -> None:
    edited = accuracies(run(*LAUNCH, "1", str(SCRIPT), cwd=tmp_path))
    assert accuracies(run("-m", "paceline.compat", str(unedited), cwd=tmp_path)) == edited


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs accelerate")
def test_it_is_a_script_of_accelerates(tmp_path: Path, unedited: Path) -> None:
    theirs = accuracies(run(str(unedited), "--cpu", cwd=tmp_path))
    assert len(theirs) == 3
    assert max(theirs) > 75
