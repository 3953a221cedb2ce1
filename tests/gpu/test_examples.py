# SPDX-License-Identifier: Apache-2.0
"""The examples with GPUs, as they are; the main job trained and resumed on two of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import harness
import vcuda

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = (
    "--layers 2 --heads 2 --width 32 --context 32 --batch-size 2 --warmup 2 --lr 3e-3 --steps 6 "
    "--validate-every 3 --validation-windows 2 --checkpoint-every 3 --sample 5 --seed 1"
).split()


def run(*command: str, cwd: Path) -> str:
    done = harness.run_program(*command, cwd=cwd, **vcuda.variables(worker=True, devices=2))
    return done.stdout + done.stderr


def last_loss(text: str) -> float:
    return float(re.findall(r"Loss: ([\d.]+)", text)[-1])


def test_first_script(tmp_path: Path) -> None:
    text = run(str(EXAMPLES / "first_script.py"), cwd=tmp_path)
    assert "device: cuda\n" in text
    assert "Epoch 1 completed" in text


def test_the_plain_loop_saves_what_a_cpu_loads(tmp_path: Path) -> None:
    assert last_loss(run(str(EXAMPLES / "single_device.py"), cwd=tmp_path)) < 0.2
    import paceline

    assert not paceline.load(tmp_path / "model.pth")["0.weight"].is_cuda


def test_classifier_learns(tmp_path: Path) -> None:
    text = run(str(EXAMPLES / "classifier.py"), cwd=tmp_path)
    assert "1 process on cuda" in text
    accuracy = re.search(r"Accuracy: ([\d.]+)", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9


@pytest.fixture(scope="module")
def on_cpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the main job computes on two processes without a GPU."""
    return train(tmp_path_factory.mktemp("cpu"), "--cpu", "--num_processes", "2")


def train(folder: Path, *flags: str, more: tuple[str, ...] = ()) -> list[str]:
    launcher = ("-m", "paceline.commands.launch", *flags, str(EXAMPLES / "train_gpt.py"))
    text = run(*launcher, *TINY, "--out", str(folder / "out"), *more, cwd=folder)
    return re.findall(r"step \d: validation loss ([\d.]+) bits", text)


def test_the_main_job_resumed(tmp_path: Path, on_cpus: list[str]) -> None:
    begun = train(tmp_path, more=("--stop-after", "3"))
    rest = train(tmp_path, more=("--resume",))
    assert len(begun) == len(rest) == 1
    for here, there in zip(on_cpus, begun + rest, strict=True):
        assert abs(float(here) - float(there)) < 2e-3  # three digits are printed


def test_the_main_job_with_the_other_model(tmp_path: Path) -> None:
    llama = ("--model", "llama", "--key-heads", "1")
    (tmp_path / "there").mkdir()
    there = train(tmp_path / "there", "--cpu", "--num_processes", "2", more=llama)
    here = train(tmp_path, more=llama)
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert abs(float(one) - float(other)) < 2e-3  # three digits are printed
