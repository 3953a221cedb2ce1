# SPDX-License-Identifier: Apache-2.0
"""``paceline sweep``: the table of a real script, and what is marked instead of compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launching import command
from paceline.commands.sweep_table import Row, draw, render

TRAINS = """
import sys
import paceline as torch
from paceline import Accelerator
from paceline.utils.data import DataLoader, TensorDataset

accelerator = Accelerator({own})
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = TensorDataset(torch.randn(256, 8), torch.randn(256, 1))
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=8))
for x, y in loader:
    with accelerator.accumulate(model):
        loss = ((model(x) - y) ** 2).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
print("ARGS", sys.argv[1:])
"""


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def test_a_real_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS.format(own=""))
    words = ["--num_processes", "1,2", "--mixed-precision", "bf16"]
    words += ["--gradient_accumulation_steps", "1,4", "-o", str(tmp_path / "table")]
    run = command(tmp_path, "sweep", *words, "train.py", "--lr", "1")
    assert run.code == 0, run.stderr
    head, _, *rows = rows_of(run.stdout)
    assert head[:6] == ["processes", "precision", "accumulation", "time", "samples/s", "speed-up"]
    assert [row[:3] for row in rows] == [
        [n, "bf16", steps] for n in ("1", "2") for steps in ("1", "4")
    ]
    assert rows[0][5:7] == ["1.00x", "100%"]
    for row in rows:
        assert re.fullmatch(r"\d+\.\d%", row[7]), row
        assert re.fullmatch(r"\d+ MiB", row[8]), row
        assert 0.1 < float(row[9]) < 10, row
    assert {row[7] for row in rows if row[0] == "1"} == {"0.0%"}, "one process talks to nobody"
    found = json.loads((tmp_path / "table.json").read_text())
    assert len(found) == 4
    assert all(entry["samples_per_s"] > 0 for entry in found)
    assert "[4/4] num_processes=2, mixed_precision=bf16" in run.stderr


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (
            TRAINS.format(own='mixed_precision="bf16"'),
            "the script itself sets mixed_precision=bf16",
        ),
        ("print('nothing')", "the script makes no Accelerator"),
        ("from paceline import Accelerator\nAccelerator()", "too few steps"),
        ("raise SystemExit(3)", "failed with exit code 3"),
    ],
)
def test_what_cannot_be_compared_is_marked(tmp_path: Path, script: str, note: str) -> None:
    (tmp_path / "train.py").write_text(script)
    run = command(tmp_path, "sweep", "--num_processes", "2", "train.py")
    assert run.code == (1 if "failed" in note else 0)
    (row,) = rows_of(run.stdout)[2:]
    assert row[:3] == ["2", "no", "1"]
    assert row[4].startswith(note)
    assert len(row) == 5, "nothing is reported beside the note"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes", "1,1", "train.py"], "expected different numbers"),
        (["--num_processes", "0", "train.py"], "expected different numbers"),
        (["--mixed_precision", "bf61", "train.py"], "expected some of no, fp16, bf16"),
        (["--rounds", "0", "train.py"], "--rounds: got 0"),
        (["missing.py"], "cannot read the script 'missing.py'"),
    ],
)
def test_refusals(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "train.py").write_text("print('STARTED')")
    run = command(tmp_path, "sweep", *words)
    assert run.code == 2
    assert message in run.stderr
    assert "STARTED" not in run.stdout


def _row(n: int, rate: float, **more: object) -> Row:
    return Row(n, "no", 1, 2.0, rate, 100 << 20, 0.031, 0.5, **more)  # type: ignore[arg-type]


def test_rounds_give_the_median_and_the_spread() -> None:
    row = Row.median([_row(2, 10.0), _row(2, 30.0), _row(2, 20.0)])
    assert row.samples_per_s == 20.0
    assert row.spread == (10.0, 30.0)
    assert "20 (10-30)" in render([row])
    failed = Row(2, "no", 1, 1.0, code=1, note="failed with exit code 1")
    assert Row.median([_row(2, 10.0), failed]) is failed


def test_speed_up_and_efficiency() -> None:
    *_, row = rows_of(render([_row(1, 100.0), _row(2, 190.0)]))
    assert row[5:] == ["1.90x", "95%", "3.1%", "100 MiB", "0.5000"]


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([_row(1, 100.0), _row(2, 190.0)], "train.py", str(tmp_path / "sweep.png"))
    assert (tmp_path / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
