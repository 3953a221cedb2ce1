# SPDX-License-Identifier: Apache-2.0
"""The C units, one pytest item per TEST, so that one report covers everything.

Built on first use with CMake and Ninja in build/ctests, incrementally; build/asan and build/tsan
are the Makefile's (`make test-asan`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cbuild

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "tests" / "c").glob("test_*.c"))


def _names(source: Path) -> list[str]:
    """List the tests of a file; one that includes another file of tests has those too."""
    text = source.read_text()
    # What only ThreadSanitizer's build has is not in the build below.
    text = re.sub(r"^#ifdef __SANITIZE_THREAD__\n.*?^#(else|endif)", "", text, flags=re.M | re.S)
    included = re.search(r'^#include "(test_\w+\.c)"', text, re.MULTILINE)
    names = re.findall(r"^TEST\((\w+)\)", text, re.MULTILINE)
    return (_names(source.with_name(included[1])) if included is not None else []) + names


# kernels/cuda on the host is C++; without a compiler for it those binaries are not built.
HAS_CXX = cbuild.has_cxx()
TESTS = [(source.stem, name) for source in SOURCES for name in _names(source)]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return an environment in which a C program finds oneDNN: it has no wheel to ask."""
    finder = [sys.executable, ROOT / "cmake" / "find_dnnl.py", "library"]
    library = subprocess.run(finder, capture_output=True, text=True).stdout.strip()
    return {"PACELINE_DNNL": library, **os.environ} if library else dict(os.environ)


@pytest.fixture(scope="session")
def built() -> tuple[Path, str]:
    """Build all C tests; return the folder they are in, and what went wrong."""
    return cbuild.FOLDER, cbuild.build()


@pytest.mark.timeout(900)
def test_the_c_tests_build(built: tuple[Path, str]) -> None:
    _, problem = built
    if problem:
        pytest.fail(problem, pytrace=False)
    assert {stem for stem, _ in TESTS} == {source.stem for source in SOURCES}


@pytest.mark.timeout(900)  # whichever test is first waits for the build
@pytest.mark.parametrize(("binary", "name"), TESTS)
def test_unit(built: tuple[Path, str], environment: dict[str, str], binary: str, name: str) -> None:
    folder, problem = built
    if problem:
        pytest.fail("the C tests did not build", pytrace=False)
    if not HAS_CXX and binary.startswith(("test_cuda", "test_simt", "test_vcuda")):
        pytest.skip("no C++ compiler")
    command = [folder / binary, name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("binary", sorted({s for s, _ in TESTS if s.startswith("test_kernels")}))
def test_kernels_for_older_processors(
    built: tuple[Path, str], environment: dict[str, str], binary: str, isa: str
) -> None:
    """The kernels as they run where the newer instruction sets are missing."""
    folder, problem = built
    if problem:
        pytest.fail("the C tests did not build", pytrace=False)
    env = {**environment, "PACELINE_CPU_ISA": isa}
    done = subprocess.run([folder / binary], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
