# SPDX-License-Identifier: Apache-2.0
"""``paceline config``: the questionnaire through a pseudo-terminal, and its file in both tools."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launching import command
from paceline.commands import answers
from paceline.commands.config_file import load
from paceline.commands.questions import basic

DOWN, ENTER = "\x1b[B", "\r"


class Terminal:
    """``paceline config`` on a pseudo-terminal, with a screen that answers as a real one does."""

    def __init__(self, path: Path) -> None:
        argv = [sys.executable, "-m", "paceline.commands", "config", "--config_file", str(path)]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.environ["TERM"] = "xterm"
                os.execv(argv[0], argv)
            finally:
                os._exit(127)  # never a second pytest
        self.seen = ""
        self._at = 0

    def until(self, text: str, timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while text not in self.seen[self._at :]:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                if self.seen.endswith("\x1b[6n"):  # asks where the cursor is
                    os.write(self.fd, b"\x1b[1;1R")
        self._at = self.seen.index(text, self._at) + len(text)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                if select.select([self.fd], [], [], 0.05)[0]:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"still there: {self.seen!r}")


def test_questionnaire_with_arrow_keys_and_full_width_answers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.yaml"
    terminal = Terminal(path)
    terminal.until("type of machine")
    terminal.type(DOWN + DOWN + ENTER)  # multi-GPU
    terminal.until("different machines")
    terminal.type(ENTER)
    terminal.until("How many GPU(s)")
    terminal.type("２" + ENTER)
    terminal.until("by id")
    terminal.type("4，5" + ENTER)
    terminal.until("mixed precision")
    terminal.type(DOWN + DOWN + ENTER)
    terminal.until("Configuration saved")
    assert terminal.end() == 0
    values = yaml.safe_load(path.read_text())
    assert values["distributed_type"] == "MULTI_GPU"
    assert values["num_processes"] == 2
    assert values["gpu_ids"] == "4,5"
    assert values["mixed_precision"] == "bf16"
    assert list(tmp_path.joinpath("new").iterdir()) == [path]


def test_ctrl_c_writes_nothing(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "config.yaml")
    terminal.until("type of machine")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert not list(tmp_path.iterdir())


def _config(path: Path, said: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "paceline.commands", "config", *words]
    argv += ["--config_file", str(path)]
    return subprocess.run(argv, input=said, capture_output=True, text=True, timeout=60, check=False)


def test_line_by_line_and_several_machines(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    said = "1\n2\n5\n1\nnot an address\n192．168．1．2\n\n3\n4\nbf16\n"
    run = _config(path, said)
    assert run.returncode == 0, run.stderr
    assert "got '5', expected an integer, 0 to 1" in run.stderr
    assert "got 'not an address', expected one word" in run.stderr
    assert "got '3', expected a multiple of the 2 machines" in run.stderr
    values = load(str(path)).values
    assert values["num_machines"] == 2
    assert values["machine_rank"] == 1
    assert values["main_process_ip"] == "192.168.1.2"
    assert values["main_process_port"] == 29500
    assert values["num_processes"] == 4
    assert values["mixed_precision"] == "bf16"
    assert values["use_cpu"] is True
    secret = tmp_path / "paceline.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(bytes.fromhex(secret.read_text().strip())) == 32
    assert str(secret) in run.stdout
    assert "Copy both files" in run.stdout
    before = secret.read_text()
    assert _config(path, said).returncode == 0
    assert secret.read_text() == before, "an existing secret is kept"


def test_input_that_ends_early_writes_nothing(tmp_path: Path) -> None:
    run = _config(tmp_path / "config.yaml", "2\n")
    assert run.returncode == 2
    assert "ended early: nothing was written" in run.stderr
    assert not list(tmp_path.iterdir())


def test_default_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert _config(path, "", "default", "--mixed_precision", "bf16").returncode == 0
    first = path.read_text()
    assert yaml.safe_load(first) == basic("bf16")
    again = _config(path, "", "default")
    assert "exists already" in again.stdout
    assert path.read_text() == first


def test_update_adds_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"distributed_type": "MULTI_CPU", "num_processes": 3}))
    assert _config(path, "", "update").returncode == 0
    assert json.loads(path.read_text()) == {
        **basic(),
        "distributed_type": "MULTI_CPU",
        "num_processes": 3,
    }
    path.write_text("num_proceses: 2")
    wrong = _config(path, "", "update")
    assert wrong.returncode == 2
    assert "did you mean num_processes?" in wrong.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = _config(tmp_path / "file" / "config.yaml", "", "default")
    assert run.returncode == 2
    assert "cannot write" in run.stderr


@pytest.mark.parametrize("said", ["0\nno\n0\n", "1\n1\n2\n2\n", "2\n1\n2\n4，5\n1\n"])
def test_accelerate_reads_our_file(tmp_path: Path, said: str) -> None:
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "config.yaml"
    assert _config(path, said).returncode == 0
    theirs, ours = load_config_from_file(str(path)), load(str(path)).values
    for key in ("num_processes", "num_machines", "mixed_precision", "use_cpu"):
        assert getattr(theirs, key) == ours[key]
    assert theirs.distributed_type.value == ours["distributed_type"]


def test_help_names_the_command(tmp_path: Path) -> None:
    assert "config" in command(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("4，5", "4,5"),
        ("４、５", "4,5"),
        ("4 5", "4,5"),
        ("全部", "all"),
        (" ALL ", "all"),
        ("03", "3"),
    ],
)
def test_gpu_ids(typed: str, value: str) -> None:
    assert answers.gpu_ids(typed) == value


@pytest.mark.parametrize("typed", ["", "4,4", "four", "-1", "1.5"])
def test_gpu_ids_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="numbers such as 4,5|each number once"):
        answers.gpu_ids(typed)


@pytest.mark.parametrize(("typed", "value"), [("是", True), ("ＹＥＳ", True), ("否", False)])
def test_yes_no(typed: str, value: bool) -> None:
    assert answers.yes_no(typed) is value
