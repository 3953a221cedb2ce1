# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a run of 1.5 GB, beside writing and reading as many bytes with nothing else.

The run is a model of 128 M float32 parameters with AdamW's two moments. ``raw`` writes the same
number of bytes into one file in pieces of 8 MiB and flushes it, and reads it into memory that is
new each time; it is the floor on this disk. ``checksums`` is what hashing those bytes takes.
Reading is from the page cache: what was just written is still there. Accelerate's own save does
not flush, so its figure is that of writing into the page cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import summary

PARAMETERS = 128_000_000
PIECE = 8 << 20
KINDS = ["raw", "paceline", "accelerate"]

WORKER = """
import importlib, json, sys, time
way, place, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch = importlib.import_module("paceline" if way == "paceline" else "torch")
Accelerator = importlib.import_module(way).Accelerator
accelerator = Accelerator(cpu=True)
layers = [torch.nn.Linear(4000, 4000, bias=False) for _ in range(n // 16_000_000)]
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
accelerator.backward(model(torch.ones(1, 4000)).sum())
optimizer.step()
optimizer.zero_grad()
print("ready", flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    getattr(accelerator, line.strip())(place)
    print(json.dumps(time.perf_counter() - begin), flush=True)
"""


class Worker:
    """A process with one library's run."""

    def __init__(self, way: str, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, way, str(place), str(PARAMETERS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> float:
        """Seconds of one save_state or load_state."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(json.loads(self._line()))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Raw:
    """The floor: the same bytes with nothing else."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.piece = os.urandom(PIECE)
        self.pieces = 3 * PARAMETERS * 4 // PIECE

    def _save(self) -> None:
        fd = os.open(self.place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(self.pieces):
            os.write(fd, self.piece)
        os.fsync(fd)
        os.close(fd)

    def _load(self) -> None:
        memory = memoryview(bytearray(PIECE * self.pieces))
        with self.place.open("rb", buffering=0) as file:
            for at in range(0, len(memory), PIECE):
                file.readinto(memory[at : at + PIECE])

    def _checksum(self) -> None:
        import xxhash

        for _ in range(self.pieces):
            xxhash.xxh3_128_hexdigest(self.piece)

    def ask(self, what: str) -> float:
        """Seconds of one turn."""
        work: Callable[[], None] = {
            "save_state": self._save, "load_state": self._load, "checksums": self._checksum,
        }[what]  # fmt: skip
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin


def run(rounds: int) -> dict[str, Any]:
    """Seconds by what is done and by whom; each library takes turns with the floor."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for way in filter(importlib.util.find_spec, KINDS[1:]):
        place = Path(tempfile.mkdtemp(prefix="benchmark-", dir=Path.cwd()))
        print(f"checkpoint: starts {way}", file=sys.stderr)
        worker = Worker(way, place / "run")
        try:
            actors: dict[str, Any] = {"raw": Raw(place / "raw"), way: worker}
            for turn in range(rounds):
                print(f"checkpoint: {way}, round {turn + 1}", file=sys.stderr)
                for what in ("save_state", "load_state", "checksums"):
                    for kind, actor in actors.items():
                        if what != "checksums" or kind == "raw":
                            times = seconds.setdefault(what, {}).setdefault(kind, [])
                            times.append(actor.ask(what))
        finally:
            worker.stop()
            shutil.rmtree(place)
    return {"bytes": PIECE * (3 * PARAMETERS * 4 // PIECE), "seconds": seconds}


def report(result: dict[str, Any]) -> None:
    """Print seconds and GB/s, and the ratio to the floor."""
    print(f"\nCheckpoint of {result['bytes'] / 1e9:.2f} GB: seconds, median (min to max)")
    for what, kinds in result["seconds"].items():
        for kind, values in kinds.items():
            low, middle, high = summary(values)
            ratio = "" if kind == "raw" else f"  {middle / summary(kinds['raw'])[1]:5.2f}x raw"
            print(
                f"  {what:12s} {kind:12s} {middle:7.2f} ({low:.2f} to {high:.2f})"
                f"  {result['bytes'] / middle / 1e9:6.2f} GB/s{ratio}"
            )
