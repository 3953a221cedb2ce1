# SPDX-License-Identifier: Apache-2.0
"""What users' type checkers see: the types of an ordinary script, and the mistakes they find."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra: lint)"
)


def mypy(file: str, cache: Path) -> list[str]:
    options = ["--strict", "--config-file=", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, HERE / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if Path(line.split(":")[0]).name == file]


def test_the_types_of_a_script(tmp_path: Path) -> None:
    assert mypy("surface.py", tmp_path) == []


def test_mistakes_are_found(tmp_path: Path) -> None:
    text = (HERE / "wrong.py").read_text().splitlines()
    wanted = {number for number, line in enumerate(text, 1) if line.endswith("# error")}
    lines = mypy("wrong.py", tmp_path)
    found = {int(line.split(":")[1]) for line in lines if ": error:" in line}
    assert found == wanted
