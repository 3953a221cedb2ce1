# SPDX-License-Identifier: Apache-2.0
"""PyTorch models trained through paceline, beside Accelerate with DDP on Gloo, interleaved.

Step time of two processes, the share of communication that a step shows, peak memory of a rank
(resident, and how much of that is memory that the ranks share),
and the time from the launcher's start to the end of a script that builds an Accelerator.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import Ranks, summary

# Name, library, processes, one group.
ROWS = [
    ("paceline", "paceline", True),
    ("accelerate + DDP on Gloo", "accelerate", True),
    ("torch, unconnected", "torch", False),
]
STEPS = {"gpt": 3, "gpt2": 1}
WORLD = 2
SCRIPT = """\
from {library} import Accelerator
import torch
accelerator = Accelerator(cpu=True)
accelerator.prepare(torch.nn.Linear(4, 4))
accelerator.wait_for_everyone()
"""


def run(model: str, precision: str, rounds: int) -> dict[str, Any]:
    """One table: milliseconds per step by row, and the peak memory of the larger rank."""
    ranks = {
        name: Ranks("benchmarks.bridge_worker", [library, model, precision], WORLD, connected)
        for name, library, connected in ROWS
    }
    times: dict[str, list[float]] = {name: [] for name in ranks}
    try:
        for row in ranks.values():
            row.start()
        for _ in range(rounds):
            for name, row in ranks.items():
                times[name].append(1e3 * row.seconds_per_step(STEPS[model]))
        memory = {name: max(map(json.loads, row.ask("memory"))) for name, row in ranks.items()}
    finally:
        for row in ranks.values():
            row.stop()
    return {"model": model, "precision": precision, "ms": times, "peak_mib": memory}


def startup(rounds: int) -> dict[str, list[float]]:
    """Seconds of a launch of two processes that build an Accelerator and meet once."""
    programs = {
        "paceline": [sys.executable, "-m", "paceline.commands.launch", "--num_processes", "2"],
        "accelerate + DDP on Gloo": [
            *_accelerate(), "--cpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no",
        ],
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        for library in ("paceline", "accelerate"):
            Path(folder, f"with_{library}.py").write_text(SCRIPT.format(library=library))
        for _ in range(rounds):
            for name, program in programs.items():
                script = f"with_{name.split()[0]}.py"
                env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=_package_folder())
                start = time.perf_counter()
                subprocess.run([*program, script], cwd=folder, env=env, check=True,
                               capture_output=True)  # fmt: skip
                times[name].append(time.perf_counter() - start)
    return times


def _package_folder() -> str:
    import paceline

    return str(Path(paceline.__file__).resolve().parents[1])


def _accelerate() -> list[str]:
    beside = Path(sys.executable).with_name("accelerate")
    program = str(beside) if beside.exists() else shutil.which("accelerate")
    if program is None:
        raise RuntimeError("[benchmarks] bridge needs Accelerate: pip install accelerate")
    return [program, "launch"]


def report(result: dict[str, Any]) -> None:
    print(f"\n{result['model']} {result['precision']} of PyTorch, 2 processes, ms per step")
    alone = result["ms"]["torch, unconnected"]
    for name, values in result["ms"].items():
        low, middle, high = summary(values)
        shown = statistics.median(1 - a / v for a, v in zip(alone, values, strict=True))
        print(
            f"  {name:26s} {middle:9.2f} ({low:.2f} to {high:.2f})  exposed communication "
            f"{100 * shown:5.1f} %  peak {result['peak_mib'][name][0]:.0f} MiB, of which "
            f"{result['peak_mib'][name][1]:.0f} shared (each rank counts it whole)"
        )


def report_startup(times: dict[str, list[float]]) -> None:
    print("\nlaunch of 2 processes that import torch and build an Accelerator, seconds")
    for name, values in times.items():
        low, middle, high = summary(values)
        print(f"  {name:26s} {middle:9.2f} ({low:.2f} to {high:.2f})")
