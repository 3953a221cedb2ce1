# SPDX-License-Identifier: Apache-2.0
"""The tests of `on_device` on the virtual GPU, each file in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vcuda

FOLDER = Path(__file__).parent / "on_device"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


# An order of streams and threads, and another in `make test-all`; more by hand:
# PACELINE_VCUDA_SEED after `make vcuda`. Odd ones have a guard behind every tensor (vcuda.py),
# which is worth most where each operator is called; with even ones tensors share segments.
GUARDED = ("test_nccl.py", "test_operators.py", "test_optimizers.py", "test_tensors.py")


@pytest.mark.timeout(900)  # the first one builds
@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_on_the_virtual_gpu(name: str, again: bool) -> None:
    seed = 1 + ((name in GUARDED) == again) + 4 * again
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", "gpu", str(FOLDER / name)],
        env=vcuda.environment(seed=seed),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
    assert "no GPU" not in done.stdout
