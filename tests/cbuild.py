# SPDX-License-Identifier: Apache-2.0
"""The CMake build of the C tests and of the virtual GPU, in build/ctests, incrementally."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "ctests"


def has_cxx() -> bool:
    """Return whether there is a C++ compiler: kernels/cuda on the host needs one."""
    return shutil.which(os.environ.get("CXX", "c++")) is not None


def build(*targets: str) -> str:
    """Build the targets (none: everything), one process at a time; return what went wrong."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake is None or ninja is None:
        return "cmake or ninja is missing: pip install 'paceline[test]' brings them"
    configure = [
        cmake, "-S", ROOT, "-B", FOLDER, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DPACELINE_PYTHON=0", "-DPACELINE_TESTS=1",
        "-DPACELINE_CUDA=0",
        f"-DPACELINE_ONEDNN={os.environ.get('PACELINE_ONEDNN', '1')}",
    ]  # fmt: skip
    make = [cmake, "--build", FOLDER, *(("--target", *targets) if targets else ())]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, make):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                return done.stdout + done.stderr
    return ""
