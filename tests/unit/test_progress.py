# SPDX-License-Identifier: Apache-2.0
"""Long reads and writes say how far they are: on a terminal, and only where it takes long."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import paceline as torch
from paceline import _progress
from paceline.checkpoint import disk, manifest


@contextlib.contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Make stderr a terminal; gives a function that reads what was shown there.

    No fixture: between a test's set-up and the test pytest puts its own stderr back.
    """
    inside, outside = pty.openpty()
    termios.tcsetwinsize(outside, (24, 80))
    with open(outside, "w") as stderr, contextlib.redirect_stderr(stderr):

        def shown() -> str:
            stderr.flush()
            text = b""
            while select.select([inside], [], [], 0.2)[0]:  # the kernel passes it on a little later
                text += os.read(inside, 1 << 16)
            return text.decode(errors="replace")

        yield shown
    os.close(inside)


def test_a_checkpoint_of_some_size_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_DELAY_S", 0.0)
    monkeypatch.setattr(_progress, "_WORTH_IT", 1 << 20)
    made = {name: torch.ones(1 << 20) for name in "abc"}
    with terminal() as shown:
        entry = manifest.write_tensors(str(tmp_path / "model.safetensors"), made, {})
        assert "writing model.safetensors:" in shown()
        with disk.OpenFolder(str(tmp_path)) as folder:
            read, _ = manifest.read_tensors(folder, "model.safetensors", entry)
        assert "reading model.safetensors:" in shown()
    assert read.keys() == made.keys()


def test_what_is_quick_or_small_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal() as shown:
        manifest.write_tensors(str(tmp_path / "small"), {"a": torch.ones(8)}, {})
        monkeypatch.setattr(_progress, "_WORTH_IT", 0)
        manifest.write_tensors(str(tmp_path / "quick"), {"a": torch.ones(8)}, {})
        assert shown() == ""
