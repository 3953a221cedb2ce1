# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is refused before anything starts: exit code 2, one clear sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launching import command

MARK = "print('STARTED')"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.py"], r"cannot read the script 'missing.py': No such file.*\(in /"),
        (["trian.py"], r"did you mean train\.py\?"),
        (["folder"], r"'folder' is a folder without __main__\.py"),
        (["-n", "2"], r"required: script"),
        ([], r"required: script"),
        (["--num_processes", "0", "train.py"], r"num_processes.*at least 1, got '0'"),
        (["--num_processes=-3", "train.py"], r"at least 1, got '-3'"),
        (["--num_processes", "two", "train.py"], r"at least 1, got 'two'"),
        (["--mixed_precision", "bf61", "train.py"], r"mixed_precision.*bf61.*bf16"),
        (["--multi_gpu", "train.py"], r"--multi_gpu asks for GPUs, but .* no GPU.*use --cpu"),
        (["--multi_gpu", "--cpu", "train.py"], r"--cpu and --multi_gpu contradict"),
        (["--num_machines", "2", "train.py"], r"where is the first\? add --main_process_ip"),
        (["--main_process_port", "99999", "train.py"], r"0 to 65535, got '99999'"),
        (["--num_cpu_threads_per_process", "0", "train.py"], r"at least 1, got '0'"),
        (["--num_proceses", "2", "train.py"], r"unknown option --num_proceses, did you mean"),
        (["--num_proc", "2", "train.py"], r"unknown option --num_proc,"),
        (["--use_deepspeed", "train.py"], r"--use_deepspeed comes in a later version"),
        (["--gpu-ids=0,1", "train.py"], r"--gpu_ids asks for GPUs, but .*use --cpu"),
        (["--gpu-ids=0,0", "train.py"], r"expected each number once, got '0,0'"),
        (["--cpu", "--gpu_ids", "0", "train.py"], r"--cpu and --gpu_ids contradict"),
        (["--nproc_per_node", "gpu", "train.py"], r"--nproc_per_node gpu asks for GPUs"),
        (["--nproc_per_node", "2", "-n", "2", "train.py"], r"contradict each other: give one"),
        (["--nnodes", "1:2", "train.py"], r"expected one number of machines, got '1:2'"),
        (["--dynamo_backend", "inductor", "train.py"], r"inductor comes in a later version"),
        (["--max_restarts", "-1", "train.py"], r"at least 0, got '-1'"),
        (["-m", "--no_python", "train.py"], r"-m and --no_python contradict"),
        (["--config_file", "none.yaml", "train.py"], r"none\.yaml: cannot be read: No such file"),
        (["--config_file", "gpu.yaml", "train.py"], r"MULTI_GPU \(gpu\.yaml:2\) asks for GPUs"),
        (["--config_file", "bad.yaml", "train.py"], r"bad\.yaml:1:1: unknown key 'num_proceses'"),
        (["--no_python", "no-such-program"], r"cannot start no-such-program: No such file"),
    ],
)
def test_refused(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "train.py").write_text(MARK)
    (tmp_path / "folder").mkdir()
    (tmp_path / "gpu.yaml").write_text("num_processes: 2\ndistributed_type: MULTI_GPU\n")
    (tmp_path / "bad.yaml").write_text("num_proceses: 2\n")
    run = command(tmp_path, "launch", *words)
    assert run.code == 2, run.stderr
    assert re.search(message, run.stderr), run.stderr
    assert run.stderr.startswith("paceline launch: ")
    assert len(run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stderr
    assert "STARTED" not in run.stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp4"),
        ("ACCELERATE_USE_CPU", "perhaps"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "0"),
        ("OMP_NUM_THREADS", "many"),
    ],
)
def test_bad_environment(tmp_path: Path, variable: str, value: str) -> None:
    (tmp_path / "train.py").write_text(MARK)
    run = command(tmp_path, "launch", "-n", "2", "train.py", env={variable: value})
    assert run.code == 2
    assert re.search(f"{variable} is wrong: got '{value}', expected ", run.stderr)
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_script(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(MARK)
    path.chmod(0)
    run = command(tmp_path, "launch", "train.py")
    assert run.code == 2
    assert "Permission denied" in run.stderr


def test_unreadable_script_is_refused_for_everybody(tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to("loop.py")
    run = command(tmp_path, "launch", "loop.py")
    assert run.code == 2
    assert "cannot read the script 'loop.py': Too many levels of symbolic links" in run.stderr


def test_cpu_overrides_a_file_that_demands_gpus(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(MARK)
    (tmp_path / "gpu.yaml").write_text("num_processes: 2\ndistributed_type: MULTI_GPU\n")
    run = command(tmp_path, "launch", "--cpu", "--config_file", "gpu.yaml", "train.py")
    assert run.code == 0, run.stderr
    assert run.stdout.count("STARTED") == 2


def test_subcommands(tmp_path: Path) -> None:
    run = command(tmp_path)
    assert run.code == 2
    assert "launch" in run.stdout
    run = command(tmp_path, "--help")
    assert run.code == 0
    assert "launch" in run.stdout
    assert "env" in run.stdout
    run = command(tmp_path, "lunch")
    assert run.code == 2
    assert "there is no command 'lunch': expected one of launch, " in run.stderr
    assert "did you mean launch?" in run.stderr
    run = command(tmp_path, "--version")
    assert re.fullmatch(r"\d+\.\d+\S*\n", run.stdout)


def test_help_lists_the_options(tmp_path: Path) -> None:
    run = command(tmp_path, "launch", "-h")
    assert run.code == 0
    for flag in ("--num_processes", "--mixed_precision", "--cpu", "--config_file", "-m"):
        assert flag in run.stdout


def test_env(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("num_processes: 2\n")
    environment = {"PACELINE_SECRET_FILE": "hidden", "ACCELERATE_LOG_LEVEL": "info"}
    run = command(tmp_path, "env", "--config_file", "mine.yaml", env=environment)
    assert run.code == 0, run.stderr
    for name in ("paceline", "Python", "Processor", "Instruction sets", "Cores", "oneDNN", "numpy"):
        assert re.search(rf"^- {name}: .", run.stdout, re.MULTILINE), name
    assert "    num_processes: 2" in run.stdout
    assert "ACCELERATE_LOG_LEVEL=info" in run.stdout
    assert "hidden" not in run.stdout
    run = command(tmp_path, "env", "--config_file", "none.yaml")
    assert "none (none.yaml does not exist)" in run.stdout
