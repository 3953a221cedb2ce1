# SPDX-License-Identifier: Apache-2.0
"""A hundred saves and loads leave no descriptor, no object and no file behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from faults.saving import Tiny
from paceline import _C
from paceline.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("one_process")


def _held() -> tuple[int, dict[str, int]]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), _C.live_objects()


def test_saves_loads_and_refusals_leave_nothing(tmp_path: Path) -> None:
    tiny = Tiny()
    tiny.step()
    (tmp_path / "file").write_text("x")

    def turn() -> None:
        tiny.save(tmp_path / "place" / "c")
        tiny.accelerator.load_state(tmp_path / "place" / "c")
        with pytest.raises(CheckpointError):
            tiny.save(tmp_path / "file")
        manifest = tmp_path / "place" / "c" / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:-1])
        with pytest.raises(CheckpointError):
            tiny.accelerator.load_state(tmp_path / "place" / "c")

    for _ in range(3):
        turn()
    before = _held()
    for _ in range(100):
        turn()
    assert _held() == before
    assert os.listdir(tmp_path / "place") == ["c"]
