# SPDX-License-Identifier: Apache-2.0
"""The virtual GPU (tests/c/vcuda) for Python tests: paceline with device="cuda" on any machine.

`environment(...)` builds the library on first use and returns the variables under which a NEW
process has the virtual GPU; `run(code, ...)` runs Python code in such a process. Only new
processes: the device is opened once, and this process may be asked whether it has a GPU.
By hand: `make vcuda` prints the exports.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cbuild


@functools.cache
def _build() -> tuple[Path, str]:
    if not cbuild.has_cxx():
        return cbuild.FOLDER, "no C++ compiler"
    return cbuild.FOLDER / "libvcuda.so", cbuild.build("vcuda")


def library() -> Path:
    """Return the built library; skip where there is no C++ compiler."""
    path, problem = _build()
    if problem == "no C++ compiler":
        pytest.skip(problem)
    if problem:
        pytest.fail(problem, pytrace=False)
    return path


def variables(
    *, seed: int = 0, worker: bool = False, devices: int = 1, memory: int | None = None
) -> dict[str, str]:
    """Return the variables of the virtual GPU alone.

    Parameters
    ----------
    seed : int
        Of the order in which streams and the threads of kernels run.
    worker : bool
        A thread runs the tasks at all times. Needed with several ranks: the host of one rank waits
        for another's without synchronising its device.
    devices : int
        GPUs of the machine.
    memory : int, optional
        Bytes of each.
    """
    path = str(library())
    made = {
        "PACELINE_CUDA_LIBRARY": path,
        "PACELINE_CUBLASLT": path,
        "PACELINE_NCCL": path,
        "PACELINE_CUDNN": path,
        "PACELINE_BLAS_MEASURE": "0",  # the user's cache folder is not the tests'
        "PACELINE_VCUDA_SEED": str(seed),
        "PACELINE_VCUDA_WORKER": str(int(worker)),
        "PACELINE_VCUDA_DEVICES": str(devices),
        # Odd seeds: every block has guards behind it; even ones: it lies between others.
        "PACELINE_CUDA_WHOLE_BLOCKS": str(seed % 2),
    }
    return made if memory is None else {**made, "PACELINE_VCUDA_MEMORY": str(memory)}


def environment(
    *, seed: int = 0, worker: bool = False, devices: int = 1, memory: int | None = None
) -> dict[str, str]:
    """Return this process's environment with `variables(...)`."""
    return {
        **os.environ,
        **variables(seed=seed, worker=worker, devices=devices, memory=memory),
    }


def run(code: str, *, timeout: float = 60, env: dict[str, str] | None = None) -> str:
    """Run Python code on the virtual GPU; return what it printed, or fail the test."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment() if env is None else env,
    )
    if done.returncode != 0:
        pytest.fail(f"exit status {done.returncode}:\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


if __name__ == "__main__":
    for _name, _value in variables(worker=os.environ.get("WORKER", "0") == "1").items():
        print(f"export {_name}={_value}")
