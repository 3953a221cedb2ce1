# SPDX-License-Identifier: Apache-2.0
"""The C units, one pytest item per TEST, so that one report covers everything.

Built on first use with CMake and Ninja in build/ctests, incrementally; build/asan and build/tsan
are the Makefile's (`make test-asan`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "tests" / "c").glob("test_*.c"))
TESTS = [
    (source.stem, name)
    for source in SOURCES
    for name in re.findall(r"^TEST\((\w+)\)", source.read_text(), re.MULTILINE)
]


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Build all C tests and return the folder they are in."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    assert cmake is not None, "cmake is missing: pip install 'paceline[test]' brings it"
    assert ninja is not None, "ninja is missing: pip install 'paceline[test]' brings it"
    folder = ROOT / "build" / "ctests"
    configure = [
        cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DPACELINE_PYTHON=0", "-DPACELINE_TESTS=1",
        f"-DPACELINE_ONEDNN={os.environ.get('PACELINE_ONEDNN', '1')}",
    ]  # fmt: skip
    for command in (configure, [cmake, "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return folder


def test_there_are_c_tests() -> None:
    assert {stem for stem, _ in TESTS} == {source.stem for source in SOURCES}


# The build happens in the first test that runs.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("binary", "name"), TESTS)
def test_unit(binaries: Path, binary: str, name: str) -> None:
    done = subprocess.run([binaries / binary, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
