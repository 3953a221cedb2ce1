# SPDX-License-Identifier: Apache-2.0
"""Check of `paceline/_cuda.so` where there is nvcc but no GPU: build it and look at it.

`python tests/cuda_build.py [architectures]` (default `90a-real`, in CMake's words). Compiles and
links every kernel; one exported symbol; nothing of CUDA among what must be there at load time;
no kernel spills registers (but for one, by 8 bytes) or takes more than its block size allows;
without a driver the library says so in one sentence. Run by `.ci/run`; needs no Python headers.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
# A processor has 65,536: at least two blocks of 256 threads, of attention's 128 threads.
REGISTERS, REGISTERS_ATTENTION = 128, 255
# Attention's gradient by keys, 32 rows of a warp, lacks two registers; nothing tried gave them.
SPILLS_ATTENTION = 8
VERSION = 5  # PL_CUDA_BACKEND_VERSION


def run(*command: str | Path) -> str:
    """Run a command; return what it printed, or end with it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def build(folder: Path, archs: str) -> str:
    """Build the library in `folder`; return the compiler's report."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake is None or ninja is None:
        raise SystemExit("cmake or ninja is missing: pip install 'paceline[test]' brings them")
    run(
        cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DPACELINE_PYTHON=0", "-DPACELINE_CUDA=1",
        f"-DPACELINE_CUDA_ARCHS={archs}",
    )  # fmt: skip
    return run(cmake, "--build", folder, "--target", "_cuda")


def check_report(report: str) -> list[str]:
    """Return what is wrong with the kernels, by ptxas's own report; none at all is wrong too."""
    problems = []
    kernels = re.split(r"Compiling entry function '", report)[1:]
    for text in kernels:
        name = text.split("'", 1)[0]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", text)[:2]]
        registers = re.search(r"Used (\d+) registers", text)
        if len(spills) != 2 or registers is None:
            problems.append(f"{name}: no report of registers and spills")
        elif max(spills) > (SPILLS_ATTENTION if "attention_grad" in name else 0):
            problems.append(f"{name}: spills {spills[0]} + {spills[1]} bytes")
        else:
            most = REGISTERS_ATTENTION if "attention" in name else REGISTERS
            if int(registers[1]) > most:
                problems.append(f"{name}: {registers[1]} registers, expected at most {most}")
    print(f"{len(kernels)} kernels")
    return problems if kernels else ["no kernel was reported"]


def check_symbols(library: Path) -> list[str]:
    """Return what is wrong with the symbols and the libraries it asks for."""
    defined = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    wanted = {line.split()[-1] for line in run("nm", "-D", "-u", library).splitlines()}
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library)))
    problems = []
    if defined != {"pl_cuda_backend_open"}:
        problems.append(f"exported: got {sorted(defined)}, expected pl_cuda_backend_open")
    if needed - NEEDED:
        problems.append(f"NEEDED: got {sorted(needed - NEEDED)} too, expected none of CUDA")
    cuda = sorted(name for name in wanted if re.match(r"(cu[A-Z]|cuda|cublas|nccl|pl_)", name))
    return problems + ([f"undefined: {cuda}"] if cuda else [])


FAIL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)


class Host(ctypes.Structure):
    """`pl_cuda_host`."""

    _fields_ = [("fail", FAIL)]


class Backend(ctypes.Structure):
    """The beginning of `pl_cuda_backend`."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("device_count", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))),
    ]


def check_load(library: Path) -> list[str]:
    """Open the library as the core will; return what is wrong."""
    messages: list[str] = []

    def fail(status: int, _file: bytes, _line: int, message: bytes) -> int:
        messages.append(message.decode())
        return status

    host, count = Host(FAIL(fail)), ctypes.c_int(-1)
    opening = ctypes.CDLL(str(library)).pl_cuda_backend_open
    opening.restype = ctypes.POINTER(Backend)
    if opening(99, ctypes.byref(host)):
        return ["a caller of another version got a table, expected NULL"]
    table = opening(VERSION, ctypes.byref(host)).contents
    status = table.device_count(ctypes.byref(count))
    if status == 0:
        print(f"{count.value} devices")
        return []
    if len(messages) == 1 and messages[0].startswith("[cuda] ") and "driver" in messages[0]:
        print(messages[0])
        return []
    return [f"device_count: got status {status} and {messages}"]


def main() -> None:
    """Build, look, and end with every problem found."""
    archs = sys.argv[1] if len(sys.argv) > 1 else "90a-real"
    with tempfile.TemporaryDirectory() as folder:
        report = build(Path(folder), archs)
        library = Path(folder) / "_cuda.so"
        print(f"_cuda.so for {archs}: {library.stat().st_size} bytes")
        problems = check_report(report) + check_symbols(library) + check_load(library)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
