# SPDX-License-Identifier: Apache-2.0
"""Every test here that asks for ``way`` or ``torch`` runs once for each way in."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from paceline import PartialState
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
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test begin in one process without a default state."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    yield
    PartialState._reset_state()
