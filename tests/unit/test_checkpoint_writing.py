# SPDX-License-Identifier: Apache-2.0
"""The disk is told to begin while a large file is being written; the file is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paceline.checkpoint import disk


def test_the_disk_is_told_of_every_stretch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def start_writing(fd: int, at: int, size: int) -> None:
        assert os.fstat(fd).st_size == at + size  # it is written already
        told.append((at, size))

    monkeypatch.setattr(disk, "start_writing", start_writing)
    monkeypatch.setattr(disk, "_AHEAD", 1000)
    data = os.urandom(4096)
    with disk.Writer(str(tmp_path / "file")) as file:
        for at in range(0, len(data), 300):
            file.write(data[at : at + 300])
    assert (tmp_path / "file").read_bytes() == data
    assert told == [(0, 1200), (1200, 1200), (2400, 1200)]


def test_a_small_file_is_only_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "start_writing", lambda *_: pytest.fail("told"))
    with disk.Writer(str(tmp_path / "file")) as file:
        file.write(b"x" * 1000)
    assert (tmp_path / "file").stat().st_size == 1000


def test_the_hint_takes_any_file_and_says_nothing(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        disk.start_writing(file.fileno(), 0, 5000)
    read, write = os.pipe()
    disk.start_writing(write, 0, 100)  # refused by the system
    os.close(read)
    os.close(write)
