# SPDX-License-Identifier: Apache-2.0
"""``paceline.testing.run_ranks``: bodies of tests on several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import harness
import paceline
from paceline.testing import RankTraceback, run_ranks

OFFSET = 10


def _helper(rank: int) -> int:
    return OFFSET + rank


def test_results_of_all_ranks_and_what_the_module_has() -> None:
    factor = 2

    def body(more: int) -> int:
        import paceline as torch
        from paceline import Accelerator

        accelerator = Accelerator()
        total = accelerator.reduce(torch.tensor(float(accelerator.process_index)))
        assert total.item() == 3.0
        return factor * _helper(accelerator.process_index) + more

    before = harness.names()
    assert run_ranks(body, 3, args=(1,)) == [21, 23, 25]
    assert harness.names() == before


def test_precision_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> str:
        from paceline import Accelerator

        accelerator = Accelerator()
        accelerator.print("hello from", accelerator.process_index)
        return accelerator.mixed_precision

    assert run_ranks(body, 2, mixed_precision="bf16") == ["bf16", "bf16"]
    assert capsys.readouterr().out == "hello from 0\n"


def test_a_failed_assertion_is_shown_with_its_values() -> None:
    def body() -> None:
        import os

        rank = int(os.environ["RANK"])
        assert rank == 0, f"rank was {rank}"

    with pytest.raises(AssertionError, match="rank was 1") as caught:
        run_ranks(body, 2)
    assert isinstance(caught.value.__cause__, RankTraceback)
    assert "assert rank == 0" in str(caught.value.__cause__)
    assert caught.value.__notes__ == ["raised in rank 1 of 2"]


def test_the_time_limit_shows_where_each_rank_is() -> None:
    def body() -> None:
        import os
        import time

        def stuck_here() -> None:
            time.sleep(60)

        if os.environ["RANK"] == "1":
            stuck_here()

    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done after 1\.5 s") as caught:
        run_ranks(body, 2, timeout=1.5)
    assert time.monotonic() - start < 10
    assert "stuck_here" in str(caught.value)


def test_what_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"\[run_ranks\].*variable 'lock' is a _thread.lock"):
        run_ranks(lambda: lock.locked(), 1)

    def body() -> object:
        import threading

        return threading.Lock()

    with pytest.raises(TypeError, match=r"\[run_ranks\] what rank 0 returned cannot be sent here"):
        run_ranks(body, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "n: got 0"), ({"n": True}, "n: got True"), ({"timeout": 0}, "timeout: got 0")],
)
def test_wrong_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_ranks(print, **options)  # type: ignore[arg-type]


SUITE = """\
import pytest
from paceline.testing import run_ranks

@pytest.mark.parametrize("start", range(3))
def test_sum(start):
    def body():
        import paceline as torch
        from paceline import Accelerator
        accelerator = Accelerator()
        return accelerator.reduce(torch.tensor([float(start + accelerator.process_index)])).item()
    assert run_ranks(body, 2) == [2 * start + 1.0] * 2

def test_red():
    def body():
        found = 1 + 1
        assert found == 3
    run_ranks(body, 2)
"""


def test_several_suites_at_once(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(paceline.__file__).parents[1])}
    runs = [
        subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        text = run.communicate(timeout=120)[0]
        assert "1 failed, 3 passed" in text
        assert "assert 2 == 3" in text, "the child's own words"
