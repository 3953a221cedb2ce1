# SPDX-License-Identifier: Apache-2.0
"""Every test here that asks for ``way`` or ``torch`` runs once for each way in."""

from __future__ import annotations

from types import ModuleType

import pytest

from ways import WAYS, library


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Name one way in, for ``run_ways``."""
    return str(request.param)


@pytest.fixture
def torch(way: str) -> ModuleType:
    """Give the tensor library of one way in, for tests in this process."""
    if way == "torch":
        pytest.importorskip("torch")
    return library(way)


@pytest.fixture(autouse=True)
def clean(one_process: None) -> None:
    """Let each test here begin so."""
