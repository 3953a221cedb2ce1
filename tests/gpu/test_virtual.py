# SPDX-License-Identifier: Apache-2.0
"""The tests of `on_device` on the virtual GPU, each file in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vcuda

FOLDER = Path(__file__).parent / "on_device"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_on_the_virtual_gpu(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(FOLDER / name)],
        env=vcuda.environment(seed=len(name)),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
