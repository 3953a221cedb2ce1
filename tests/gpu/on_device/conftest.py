# SPDX-License-Identifier: Apache-2.0
"""Tests that need a GPU: `tests/gpu/test_virtual.py` runs them on a virtual one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# A process that opens a GPU keeps it, and its forked children cannot use it: not in every run.
if not os.environ.get("PACELINE_CUDA_LIBRARY"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Open the GPU."""
    from paceline import _C

    _C.cuda_open(None, 0)


@pytest.fixture(autouse=True)
def all_work_is_done() -> Iterator[None]:
    """Tell the test that enqueued it what a kernel complained of."""
    from paceline import _C

    yield
    _C.cuda_synchronize()
