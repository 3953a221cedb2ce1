# SPDX-License-Identifier: Apache-2.0
"""Tests that need a GPU, all marked `gpu`: `pytest -m gpu` runs them where there is one.

Other runs leave them out, since a process that opens a GPU keeps it, and its forked children
cannot use it; `tests/gpu/test_virtual.py` has them run on the virtual GPU in other processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; pytest asks with the items of all folders."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Open the GPU."""
    if not paceline.cuda.is_available():
        pytest.skip("no GPU (`make vcuda` prints how to have the tests' virtual one)")
    from paceline import _C

    _C.cuda_open(None, 0)


@pytest.fixture(autouse=True)
def all_work_is_done() -> Iterator[None]:
    """Tell the test that enqueued it what a kernel complained of."""
    from paceline import _C

    yield
    _C.cuda_synchronize()
