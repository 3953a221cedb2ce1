# SPDX-License-Identifier: Apache-2.0
"""Fixed costs before the first step: importing, commands, starting two processes that meet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import ABSENT
from benchmarks.processes import package_path
from benchmarks.session import Session, alternate, row_of
from benchmarks.table import Table

SCRIPT = """\
from {library} import Accelerator
{torch}
accelerator = Accelerator(cpu=True)
accelerator.prepare(torch.nn.Linear(4, 4))
accelerator.wait_for_everyone()
"""
COMMANDS = ("--help", "env", "test")
NATIVE = SCRIPT.format(library="paceline", torch="import paceline as torch")
BRIDGE = SCRIPT.format(library="paceline", torch="import torch")
THEIRS = SCRIPT.format(library="accelerate", torch="import torch")


def run(session: Session) -> Iterator[Table]:
    """Yield seconds of imports and of launches, in turns."""
    yield imports(session)
    yield commands(session)
    yield launches(session)


def imports(session: Session) -> Table:
    """Milliseconds of an interpreter that imports a package, less those of one that does not."""
    modules = {"paceline": "paceline", "NumPy": "numpy", "PyTorch": "torch"}
    programs = {"nothing": [sys.executable, "-c", "pass"]}
    absent = {}
    for name, module in modules.items():
        if name != "PyTorch" or session.peers.has("torch"):
            python = session.peers.python(module) if name == "PyTorch" else sys.executable
            programs[name] = [python, "-c", f"import {module}"]
        else:
            absent[name] = ABSENT
    took = alternate(session, "imports", {k: timer(v, Path.cwd()) for k, v in programs.items()})
    bare = took.pop("nothing")
    over = {
        name: [1e3 * (a - b) for a, b in zip(values, bare, strict=False)]
        for name, values in took.items()
    }
    names = {name: name for name in modules if name != "paceline"}
    row = row_of("import", "paceline", {**over, **absent}, names)
    return Table("startup", "Import, over a bare interpreter", "ms", [row])


def commands(session: Session) -> Table:
    """Seconds of commands that start no rank, and of the self-test, which starts two."""
    ours = [sys.executable, "-m", "paceline.commands"]
    peer = _beside("accelerate") if session.peers.has("accelerate") else None
    programs = {}
    for what in COMMANDS:
        programs[what] = [*ours, *what.split()]
        if peer is not None and what != "test":  # its peer asks for a configuration first
            programs[f"accelerate {what}"] = [peer, *what.split()]
    with tempfile.TemporaryDirectory() as folder:
        calls = {name: timer(program, Path(folder)) for name, program in programs.items()}
        took: dict[str, Any] = dict(alternate(session, "commands", calls))
    rows = []
    for what in COMMANDS:
        theirs = took.get(f"accelerate {what}", [] if what == "test" else ABSENT)
        rows.append(row_of(f"paceline {what}", what, {**took, "peer": theirs},
                           {"peer": "accelerate"} if theirs else {}))  # fmt: skip
    return Table("startup", "Commands", "s", rows)


def launches(session: Session) -> Table:
    """Seconds from the command to its end, two processes."""
    ours = [sys.executable, "-m", "paceline.commands.launch", "--num_processes", "2"]
    scripts = {"native.py": NATIVE, "bridge.py": BRIDGE, "theirs.py": THEIRS}
    programs, absent = {"native": [*ours, "native.py"]}, {}
    if session.peers.has("torch"):
        programs["bridge"] = [*ours, "bridge.py"]
    for name, program in (("accelerate launch", accelerate()), ("torchrun", torchrun())):
        if program and session.peers.has("accelerate"):
            programs[name] = [*program, "theirs.py"]
        else:
            absent[name] = ABSENT
    with tempfile.TemporaryDirectory() as folder:
        for name, body in scripts.items():
            Path(folder, name).write_text(body)
        calls = {name: timer(program, Path(folder)) for name, program in programs.items()}
        took = alternate(session, "launch", calls)
    names = {name: name for name in ("accelerate launch", "torchrun")}
    rows = [row_of("native", "native", {**took, **absent}, names)]
    if "bridge" in took:
        rows.append(row_of("with PyTorch's model", "bridge", {**took, **absent}, names))
    title = "Launch of two processes that build an Accelerator, meet and exit"
    return Table("startup", title, "s", rows)


def timer(program: list[str], folder: Path) -> Callable[[], float]:
    """Give a call that runs a program to its end and tells the seconds."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=package_path())

    def call() -> float:
        start = time.perf_counter()
        subprocess.run(program, cwd=folder, env=env, check=True, capture_output=True, timeout=120)
        return time.perf_counter() - start

    return call


def _beside(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def accelerate() -> list[str] | None:
    """The command that starts two processes of a script with Accelerate."""
    program = _beside("accelerate")
    if program is None:
        return None
    return [program, "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


def torchrun() -> list[str] | None:
    """The same with torchrun."""
    program = _beside("torchrun")
    return [program, "--nproc-per-node", "2"] if program else None
