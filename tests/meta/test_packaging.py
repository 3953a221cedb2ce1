# SPDX-License-Identifier: Apache-2.0
"""What pip and a reader of README see."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from meta import tree

PROJECT = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("system", "machine", "part"),
    [
        ("Linux", "x86_64", None),
        ("Linux", "aarch64", "Linux aarch64 is not supported yet, a linux/amd64 container works"),
        ("Darwin", "arm64", "on macOS it works in a linux/amd64 container"),
        ("Windows", "AMD64", "on Windows it works inside WSL2"),
    ],
)
def test_other_systems_get_one_sentence(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, part: str | None
) -> None:
    # setup.py cannot be imported (it would build), so its one function is taken out.
    parsed = ast.parse((tree.ROOT / "setup.py").read_text())
    parsed.body = [
        node
        for node in parsed.body
        if isinstance(node, ast.FunctionDef) and node.name == "unsupported"
    ]
    scope = {"platform": platform}
    exec(compile(parsed, "setup.py", "exec"), scope)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    sentence = scope["unsupported"]()  # type: ignore[operator]
    assert (sentence is None) == (part is None)
    if part is not None:
        assert part in sentence
        assert "\n" not in sentence
        assert sentence.count(". ") == 0


def test_setup_only_delegates() -> None:
    assert len((tree.ROOT / "setup.py").read_text().splitlines()) <= 150


def test_the_version_stands_in_one_place() -> None:
    from paceline import __version__

    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", __version__)
    try:
        assert importlib.metadata.version("paceline") == __version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("paceline is not installed: run from a checkout")


def test_neither_torch_nor_numpy_is_needed() -> None:
    assert not [item for item in PROJECT["dependencies"] if item.startswith(("torch", "numpy"))]


def test_readme_has_the_two_commands() -> None:
    commands = re.findall(r"^python3 -m venv .*$", (tree.ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    run, check = commands
    assert "--num_processes 2" in run
    assert "examples/train_gpt.py" in run
    assert check.endswith("-m pytest -q")
    extras = set(re.findall(r"\.\[(\w+)\]", run + check))
    assert extras <= set(PROJECT["optional-dependencies"])


def test_every_dependency_has_its_reason() -> None:
    page = (tree.ROOT / "docs" / "dependencies.md").read_text()
    for item in PROJECT["dependencies"]:
        name = re.split(r"[<>=;\[ ]", item)[0]
        assert f"`{name}`" in page, name


def configure(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    assert cmake is not None
    command = [cmake, "-S", tree.ROOT, "-B", folder, "-G", "Ninja", "-DPACELINE_PYTHON=0", *flags]
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_cuda_without_nvcc_is_one_sentence(tmp_path: Path) -> None:
    done = configure(tmp_path, PACELINE_CUDA="1", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0
    assert "PACELINE_CUDA=1: nvcc is missing; expected a CUDA 13" in " ".join(done.stderr.split())


def test_without_nvcc_a_plain_build_is_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PACELINE_CUDA", raising=False)
    done = configure(tmp_path, CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "CUDA       off (PACELINE_CUDA=auto): nvcc is missing; expected a CUDA 13" in done.stdout


def test_an_nvcc_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    old.chmod(0o755)
    flags = [f"-DCMAKE_CUDA_COMPILER={old}"]  # as found: what follows asks it for its version
    done = configure(tmp_path / "build", *flags, PACELINE_CUDA="auto")
    assert done.returncode == 0, done.stderr
    assert "nvcc is too old: got 12.4, expected 13.0 or later" in done.stdout


def test_cuda_is_left_out_where_that_is_asked(tmp_path: Path) -> None:
    done = configure(tmp_path, PACELINE_CUDA="0", CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "CUDA       off, since PACELINE_CUDA=0" in done.stdout


def test_extras_for_a_gpu_name_the_pins() -> None:
    extras = PROJECT["optional-dependencies"]
    assert "nvidia-cublas==13.1.0.3" in extras["cuda13"]
    assert "paceline[cuda13]" in extras["cudnn"]
    page = (tree.ROOT / "docs" / "dependencies.md").read_text()
    for name in ("cuda13", "cudnn"):
        assert f"| `{name}` |" in page
    assert not [item for item in PROJECT["dependencies"] if item.startswith("nvidia")]
