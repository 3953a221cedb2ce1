# SPDX-License-Identifier: Apache-2.0
"""Each example runs as it is, through the launcher where it takes one."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest

import harness

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = (
    "--layers 2 --heads 2 --width 32 --context 32 --batch-size 4 --warmup 2 --lr 3e-3 "
    "--validate-every 10 --validation-windows 6 --checkpoint-every 10 --sample 20 --seed 1"
).split()


def _run(*command: str, cwd: Path) -> str:
    return harness.run_program(*command, cwd=cwd, timeout=120).stdout


def _launch(n: int, name: str, *arguments: str, cwd: Path) -> str:
    launcher = ("-m", "paceline.commands.launch", "--num_processes", str(n))
    return _run(*launcher, str(EXAMPLES / name), *arguments, cwd=cwd)


def test_first_script(tmp_path: Path) -> None:
    assert "process: 0 of 1" in _run(str(EXAMPLES / "first_script.py"), cwd=tmp_path)
    both = _launch(2, "first_script.py", cwd=tmp_path)
    assert {"process: 0 of 2", "process: 1 of 2"} <= set(both.splitlines())
    assert both.count("Epoch 1 completed") == 1


def test_classifier_learns(tmp_path: Path) -> None:
    text = _launch(2, "classifier.py", cwd=tmp_path)
    accuracy = re.search(r"Accuracy: ([\d.]+)", text)
    assert accuracy is not None, text
    assert float(accuracy[1]) > 0.8


def test_notebook_style(tmp_path: Path) -> None:
    _run(str(EXAMPLES / "notebook_style.py"), cwd=tmp_path)
    assert (tmp_path / "model.pth").stat().st_size > 0


def test_single_device(tmp_path: Path) -> None:
    assert "Epoch 2" in _run(str(EXAMPLES / "single_device.py"), cwd=tmp_path)


def _curve(folder: Path) -> list[tuple[int, str, float]]:
    with (folder / "curve.csv").open() as file:
        return [
            (int(r["step"]), r["kind"], float(r["bits_per_byte"])) for r in csv.DictReader(file)
        ]


@pytest.mark.parametrize("n", [1, 2])
def test_main_job_learns_and_resumes_where_it_was(tmp_path: Path, n: int) -> None:
    arguments = (*TINY, "--steps", "20", "--accumulate", str(3 - n))
    _launch(n, "train_gpt.py", *arguments, "--out", "whole", cwd=tmp_path)
    whole = _curve(tmp_path / "whole")
    validation = [bits for _, kind, bits in whole if kind == "validation"]
    assert len(validation) == 2
    assert validation[-1] < 7.0 < whole[0][2], "8 bits per byte is knowing nothing"
    # Stopped after 10 steps (of 20, so that the schedule is the same), then gone on from there.
    stop = ("--stop-after", "10", "--out", "parts")
    _launch(n, "train_gpt.py", *arguments, *stop, cwd=tmp_path)
    text = _launch(n, "train_gpt.py", *arguments, "--out", "parts", "--resume", cwd=tmp_path)
    assert "--- a sample ---" in text
    assert _curve(tmp_path / "parts") == whole
    drawn = (tmp_path / "whole" / "curve.png").exists()
    assert drawn == (importlib.util.find_spec("matplotlib") is not None)


def test_main_job_with_the_other_model(tmp_path: Path) -> None:
    llama = ("--model", "llama", "--key-heads", "1", "--steps", "20", "--out", "whole")
    text = _launch(2, "train_gpt.py", *TINY, *llama, cwd=tmp_path)
    assert "--- a sample ---" in text
    whole = _curve(tmp_path / "whole")
    assert [bits for _, kind, bits in whole if kind == "validation"][-1] < 7.0 < whole[0][2]
    with pytest.raises(AssertionError, match="--key-heads needs --model llama"):
        _run(str(EXAMPLES / "train_gpt.py"), "--key-heads", "1", cwd=tmp_path)
