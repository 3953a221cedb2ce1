# SPDX-License-Identifier: Apache-2.0
"""A worker around one of the programs in ``benchmarks/c``: compiles it, and passes questions on.

``go`` and some words become a line on the program's stdin; its answer is a number. The collectives
are linked with the core that ``make build`` has built. Needs a C compiler and a checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import answer

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "build" / "release" / "libpaceline_core.a"
FLAGS = ["-D_GNU_SOURCE", "-std=gnu17", "-O3", "-march=native"]


def without_core() -> str:
    """Why the collectives cannot be linked here; empty where they can."""
    return "" if CORE.exists() else "needs the core of `make build`"


def compile_program(name: str, folder: str) -> str:
    """Compile ``benchmarks/c/NAME.c`` into a folder and give the program's path."""
    program = f"{folder}/{name}"
    source = ROOT / "benchmarks" / "c" / f"{name}.c"
    if name == "collectives" and (reason := without_core()):
        raise FileNotFoundError(f"[benchmarks] {name} {reason}: {CORE} is not there")
    core = ["-Wl,--whole-archive", str(CORE), "-Wl,--no-whole-archive"]
    include = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "c")]
    command = ["cc", *FLAGS, *include, str(source), *(core if name == "collectives" else []),
               "-o", program, "-lpthread", "-ldl", "-lm"]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
    return program


def main() -> None:
    """Serve a program: its name, then its arguments."""
    name, *args = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        program = subprocess.Popen(
            [compile_program(name, folder), *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdout.readline()

        def go(*words: str) -> float:
            assert program.stdin is not None
            assert program.stdout is not None
            print(*words, file=program.stdin, flush=True)
            line = program.stdout.readline()
            if not line:
                raise RuntimeError(f"[benchmarks] {name}: the program ended, code {program.wait()}")
            return float(line)

        try:
            answer.serve({"go": go})
        finally:
            program.kill()
            program.wait()


if __name__ == "__main__":
    main()
