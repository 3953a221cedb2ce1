# SPDX-License-Identifier: Apache-2.0
"""The times of PyTorch's operators in a profile: moved to our clock by markers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from paceline.engines.torch import operators


def marker(start: int) -> Any:
    return SimpleNamespace(name=lambda: operators._MARKER, start_ns=lambda: start)


def test_the_markers_that_nothing_interrupted_tell_the_shift() -> None:
    recorder = operators.TorchOperators(shapes=False)
    recorder._marked = [(0, 900_000), (1_000_000, 1_000_010), (2_000_000, 2_900_000)]
    ahead = 5_000_000  # PyTorch's clock of ours
    found = [marker(ahead + at) for at in (2_100_000, 400_000, 1_000_005)]
    assert recorder._shift(found) == pytest.approx(-ahead, abs=10)


def test_without_markers_the_clocks_of_the_system_do() -> None:
    recorder = operators.TorchOperators(shapes=False)
    recorder._marked = [(0, 10)]
    assert recorder._shift([]) < -(10**17)  # from 1970 to a clock that begins with the machine
