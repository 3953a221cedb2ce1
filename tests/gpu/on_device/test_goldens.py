# SPDX-License-Identifier: Apache-2.0
"""What real GPUs computed (tests/data/*/results.json, recorded by tests/goldens.py), once more."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import goldens
import paceline

FILES = sorted(goldens.FOLDER.glob("*/results.json"))


@pytest.fixture(autouse=True)
def _no_state() -> Iterator[None]:
    yield
    paceline.PartialState._reset_state()


def replay(kept: dict[str, Any]) -> list[str]:
    """All that differs; what was recorded from other inputs is told as one."""
    problems, others, seen = [], 0, 0
    for golden in goldens.goldens():
        want = kept["results"].get(golden.key)
        if want is None:
            continue
        got = goldens.observe(golden)
        seen += 1
        if got["inputs"] != want["inputs"]:
            others += 1
        elif problem := goldens.differs(golden, got, want):
            problems.append(problem)
    if seen - others < 0.9 * len(kept["results"]):
        problems.append(f"only {seen - others} of {len(kept['results'])} calls are still made")
    for precision, want in kept["losses"].items():
        problem = goldens.curve_differs(precision, goldens.curve(precision), want)
        paceline.PartialState._reset_state()
        problems += [problem] if problem else []
    return problems


def test_every_recorded_result() -> None:
    if not FILES:
        pytest.skip("no results of a real GPU yet: make goldens FOLDER=tests/data/h200, on one")
    for path in FILES:
        assert path.stat().st_size <= goldens.MOST_BYTES
        assert not (problems := replay(json.loads(path.read_text()))), "\n".join(problems)


def test_what_was_recorded_is_found_again_and_a_difference_is_seen(tmp_path: Path) -> None:
    path = goldens.record(tmp_path)
    kept = json.loads(path.read_text())
    assert len(kept["results"]) == len(list(goldens.goldens()))
    assert not (problems := replay(kept)), "\n".join(problems)
    wrong = copy.deepcopy(kept)
    wrong["results"]["gelu, float32"]["values"][3] += 1e-5
    wrong["results"]["matmul, bfloat16"]["norm"] *= 1.2
    wrong["results"]["randint, float32"]["digest"] = "0"
    wrong["results"]["softmax of 17 x 1000, float64"]["shape"] = [17, 999]
    wrong["results"]["tanh, float16"]["inputs"] = "0"  # other inputs: nothing to compare
    wrong["results"]["tanh, float16"]["values"][0] = 9
    wrong["losses"]["no"][7] *= 1.001
    assert sorted(problem.partition(":")[0] for problem in replay(wrong)) == [
        "gelu, float32", "matmul, bfloat16", "no", "randint, float32",
        "softmax of 17 x 1000, float64",
    ]  # fmt: skip
