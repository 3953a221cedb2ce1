# SPDX-License-Identifier: Apache-2.0
"""One row of ``benchmarks/checkpoint.py``: seconds of ``save``, ``load`` and others.

``raw`` writes the same bytes with nothing else, which is the floor on this disk: a new file that
takes the old one's place, as ours does, or over the old one. ``safetensors`` writes and reads
torch's tensors of that size, without an optimizer and its nesting. ``settle`` ends what the system
still has to write, which is never timed.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import answer

PIECE = 8 << 20


def pieces_of(layers: int, width: int) -> int:
    """Pieces that hold a run of so many layers: float32 parameters and AdamW's two moments."""
    return max(3 * 4 * layers * width * width // PIECE, 1)


def accelerator_of(library: str, layers: int, width: int) -> Any:
    """Give an Accelerator with a model after its first step."""
    torch = importlib.import_module("paceline" if library == "paceline" else "torch")
    accelerator = importlib.import_module(library).Accelerator(cpu=True)
    stack = [torch.nn.Linear(width, width, bias=False) for _ in range(layers)]
    model = torch.nn.Sequential(*stack)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(model(torch.ones(1, width)).sum())
    optimizer.step()
    optimizer.zero_grad()
    return accelerator


def library_calls(library: str, place: str, layers: int, width: int) -> dict[str, Any]:
    """What a library's row can do."""
    accelerator = accelerator_of(library, layers, width)
    return {
        "save": lambda: accelerator.save_state(place),
        "load": lambda: accelerator.load_state(place),
    }


def raw_calls(place: Path, count: int) -> dict[str, Any]:
    """The floor: the same bytes, flushed; read into memory that is new, or was used before."""
    piece = os.urandom(PIECE)
    used = bytearray(b"1") * (PIECE * count)
    beside = place.with_name(place.name + ".new")

    def write(to: Path) -> None:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(count):
            os.write(fd, piece)
        os.fsync(fd)
        os.close(fd)

    def save() -> None:
        write(beside)
        beside.replace(place)

    def load(into: bytearray | None = None) -> None:
        memory = memoryview(bytearray(PIECE * count) if into is None else into)
        with place.open("rb", buffering=0) as file:
            for at in range(0, len(memory), PIECE):
                file.readinto(memory[at : at + PIECE])

    def checksums() -> None:
        xxhash = importlib.import_module("xxhash")
        for _ in range(count):
            xxhash.xxh3_128_hexdigest(piece)

    return {"save": save, "save_over": lambda: write(place), "load": load,
            "load_again": lambda: load(used), "checksums": checksums}  # fmt: skip


def safetensors_calls(place: str, layers: int, width: int) -> dict[str, Any]:
    """What safetensors does with torch's tensors; it does not flush."""
    torch = importlib.import_module("torch")
    module = importlib.import_module("safetensors.torch")
    tensors = {f"t{at}": torch.ones(width, width) for at in range(3 * layers)}
    return {
        "save": lambda: module.save_file(tensors, place),
        "load": lambda: [t.add_(0) for t in module.load_file(place).values()],
    }


def main() -> None:
    library, place = sys.argv[1:3]
    layers, width = map(int, sys.argv[3:5])
    if library == "raw":
        calls = raw_calls(Path(place), pieces_of(layers, width))
    elif library == "safetensors":
        calls = safetensors_calls(place, layers, width)
    else:
        calls = library_calls(library, place, layers, width)
    asked = {name: lambda f=f: answer.timed(f, 1)[0] for name, f in calls.items()}
    answer.serve({**asked, "settle": lambda: os.sync()})


if __name__ == "__main__":
    main()
