# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a run of 1.5 GB, beside writing and reading as many bytes with nothing else.

The run is a model of 128 M float32 parameters with AdamW's two moments. ``raw`` writes the same
number of bytes into a new file in pieces of 8 MiB, flushes it and gives it the old one's name, and
reads it into memory that is new each time, or was used before; it is the floor on this disk. Beside
it stands the same over the old file, whose pages the system has at hand: no save that keeps the old
one until the new one is whole can do that, and where a virtual machine must ask its host for every
new page it takes a third of the time. ``checksums`` is what hashing those bytes takes. Reading is
from the page cache: what was just written is still there. Accelerate and safetensors do not flush,
so their figures are those of writing into the page cache; safetensors maps the file, so its tensors
are touched once to be there. Each call begins when the disk has nothing left to write.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_worker import PIECE, pieces_of
from benchmarks.processes import Ranks
from benchmarks.session import Session, row_of
from benchmarks.table import Row, Table

LAYERS, WIDTH = 8, 4000  # a layer has WIDTH squared parameters
RAW = "raw"
PEER = "Accelerate"
AGAIN = "raw, into used memory"
TENSORS = "safetensors"
OVER = "raw, over the old file"
TIMES = ("save", "load")
EXTRA = ("save_over", "load_again", "checksums")  # of raw alone


def run(session: Session) -> Iterator[Table]:
    """Yield seconds of saving and loading; rows take turns."""
    layers, width = (1, 500) if session.quick else (LAYERS, WIDTH)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=Path.cwd()) as folder:

        def worker(library: str, needs: str = "") -> Ranks:
            args = [library, f"{folder}/{library}", str(layers), str(width)]
            return Ranks("benchmarks.checkpoint_worker", args, threads=2, needs=needs)

        rows = {"paceline": worker("paceline"), RAW: worker(RAW),
                PEER: worker("accelerate", "accelerate"),
                TENSORS: worker(TENSORS, "accelerate")}  # fmt: skip
        with session.running(rows, "checkpoint") as contest:
            took = contest.turns(ask)
    size = PIECE * pieces_of(layers, width) / 1e9
    table = Table("checkpoint", f"Checkpoint of {size:.2f} GB, one process", "s")
    for what in TIMES:
        of: dict[str, Any] = {name: samples(answers, what) for name, answers in took.items()}
        if what == "load":
            of[AGAIN] = samples(took[RAW], "load_again")
        else:
            of[OVER] = samples(took[RAW], "save_over")
        shown = {name: name for name in (RAW, OVER, AGAIN, PEER, TENSORS)}
        table.rows.append(row_of(what, "paceline", of, shown))
    table.rows.append(Row("checksums", [], {RAW: samples(took[RAW], "checksums")}))
    yield table


def samples(answers: list[dict[str, float]] | str, what: str) -> list[float] | str:
    """The seconds of one question, or why there are none."""
    return answers if isinstance(answers, str) else [a[what] for a in answers]


def ask(name: str, row: Ranks) -> dict[str, Any]:
    """Ask for one turn of a row, which finds and leaves a disk with nothing to write."""
    found = {}
    for what in (*TIMES, *(EXTRA if name == RAW else ())):
        row.ask("settle")
        found[what] = row.ask(what)[0]
    row.ask("settle")
    return found
