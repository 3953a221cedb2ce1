# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks gpu` runs, on the virtual GPU at its smallest; no speed is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu import PER_TOKEN, shares
from benchmarks.peers import PEERS

import vcuda

TREE = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_the_gpu_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--rounds", "1"]
    done = subprocess.run(
        [*words, "--json", str(out), "--without", *PEERS],
        env=vcuda.environment(), cwd=TREE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = json.loads(out.read_text())["tables"]
    assert [table["unit"] for table in tables] == ["thousand tokens/s", "MiB", "GB/s", "TFLOP/s"]
    for table in tables:
        assert table["title"].startswith("Virtual GPU: ")
        for row in table["rows"]:
            assert len(row["ours"]) == 1
            assert math.isfinite(row["ours"][0])
            assert row["ours"][0] > 0
            assert "failed" not in row["peers"].values()
    bounded = {row["case"] for row in tables[2]["rows"]}
    assert {
        "copy",
        "layer_norm",
        "AdamW, fp32",
        "layer_norm, gradient",
        "rotary",
        "swiglu, gradient",
    } <= bounded


def test_the_share_of_the_peak_is_that_of_llm_c() -> None:
    # llm.c's own figure for an H100: 471.5 thousand tokens per second are 38.3 % of 989 TFLOP/s.
    assert round(PER_TOKEN / 1e6, 1) == 803.5
    assert "paceline 38.3 %" in shares({"paceline": [471.5], "PyTorch eager": "failed"})
    assert "PyTorch" not in shares({"paceline": [1.0], "PyTorch eager": "failed"})
