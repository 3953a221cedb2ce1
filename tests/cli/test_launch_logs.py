# SPDX-License-Identifier: Apache-2.0
"""``--log_dir`` and ``--tee`` keep what each process prints; ``--max_restarts`` starts again."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from launching import command, launch

SAY = """
import os, sys
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
print("out", rank, attempt)
print("err", rank, attempt, file=sys.stderr)
"""


def kept(folder: Path) -> dict[str, str]:
    """Text by place, without the run's own name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {"/".join(path.parts[-3:]): path.read_text() for path in files}


def test_both_streams_of_each_rank_are_kept_and_still_shown(tmp_path: Path) -> None:
    run = launch(tmp_path, SAY, "--log_dir", str(tmp_path / "logs"))
    assert run.code == 0
    assert kept(tmp_path / "logs") == {
        "attempt_0/0/stderr.log": "err 0 0\n",
        "attempt_0/0/stdout.log": "out 0 0\n",
        "attempt_0/1/stderr.log": "err 1 0\n",
        "attempt_0/1/stdout.log": "out 1 0\n",
    }
    assert sorted(run.stdout.split("\n")) == ["", "out 0 0", "out 1 0"]
    (run_folder,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}", run_folder.name)


@pytest.mark.parametrize(
    ("tee", "files"),
    [
        ("1", {"attempt_0/0/stdout.log", "attempt_0/1/stdout.log"}),
        ("0:2,1:1", {"attempt_0/0/stderr.log", "attempt_0/1/stdout.log"}),
        ("1:3", {"attempt_0/1/stderr.log", "attempt_0/1/stdout.log"}),
        ("0", set()),
    ],
)
def test_tee_chooses(tmp_path: Path, tee: str, files: set[str]) -> None:
    assert launch(tmp_path, SAY, "--log-dir", str(tmp_path / "logs"), "-t", tee).code == 0
    assert set(kept(tmp_path / "logs")) == files


def test_tee_without_a_folder_says_where(tmp_path: Path) -> None:
    run = launch(tmp_path, SAY, "--tee", "3", env={"TMPDIR": str(tmp_path)}, n=1)
    assert run.code == 0
    found = re.search(r"logs go to (\S+)", run.stderr)
    assert found is not None
    assert kept(Path(found[1]))["attempt_0/0/stdout.log"] == "out 0 0\n"


def test_a_traceback_stands_in_the_log_of_its_rank(tmp_path: Path) -> None:
    text = "import os\nassert os.environ['RANK'] == '0', 'not me'\n"
    run = launch(tmp_path, text, "--log_dir", str(tmp_path / "logs"))
    assert run.code == 1
    assert "AssertionError: not me" in kept(tmp_path / "logs")["attempt_0/1/stderr.log"]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "train.py").write_text("print('STARTED')")
    run = command(tmp_path, "launch", "--log_dir", str(tmp_path / "file"), "train.py")
    assert run.code == 2
    assert re.search(r"cannot .*Not a directory", run.stderr)
    run = command(tmp_path, "launch", "--tee", "4", "train.py")
    assert run.code == 2
    assert "expected 1 (stdout), 2 (stderr), 3 (both), or such by rank as in 0:3,1:2" in run.stderr
    assert "STARTED" not in run.stdout


def test_a_full_disk_ends_the_log_and_not_the_job(tmp_path: Path) -> None:
    text = "import sys\nfor i in range(20000): print('x' * 50)\nprint('LAST')\n"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from paceline.commands import main; sys.exit(main(sys.argv[1:]))"
    )
    import subprocess
    import sys

    from launching import environment

    (tmp_path / "script.py").write_text(text)
    argv = [sys.executable, "-c", code, "launch", "--log_dir", str(tmp_path / "logs"), "script.py"]
    run = subprocess.run(
        argv,
        cwd=tmp_path,
        env=environment("full-disk", None),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
    assert run.returncode == 0, run.stderr
    assert "LAST" in run.stdout
    assert "log ends: File too large" in run.stdout


# --- restarts -------------------------------------------------------------------------------------

RECOVERS = """
import os, sys, time
rank, attempt = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("attempt", attempt, "of", os.environ["TORCHELASTIC_MAX_RESTARTS"], "rank", rank)
if rank == "1" and attempt < 2:
    raise RuntimeError(f"lost in attempt {attempt}")
from paceline import Accelerator
accelerator = Accelerator()
accelerator.wait_for_everyone()
print("done", rank)
"""


def test_the_job_starts_again_until_it_succeeds(tmp_path: Path) -> None:
    run = launch(tmp_path, RECOVERS, "--max_restarts", "3", "--log_dir", str(tmp_path / "logs"))
    assert run.code == 0, run.stderr
    assert run.stdout.count("done") == 2
    assert "attempt 2 of 3 rank 0" in run.stdout
    assert run.stderr.count("RuntimeError: lost") == 2
    assert "starting all processes again (2 of 3)" in run.stderr
    assert {key.split("/")[0] for key in kept(tmp_path / "logs")} == {
        f"attempt_{at}" for at in range(3)
    }


def test_no_more_restarts_than_allowed(tmp_path: Path) -> None:
    run = launch(tmp_path, RECOVERS, "--max_restarts", "1")
    assert run.code == 1
    assert run.stderr.count("RuntimeError: lost") == 2
    assert "(1 of 1)" in run.stderr


def test_a_signal_to_the_launcher_ends_it_for_good(tmp_path: Path) -> None:
    import signal
    import time

    from launching import start

    text = "import time\nprint('here', flush=True)\ntime.sleep(60)\n"
    with start(tmp_path, text, "--max_restarts", "5") as running:
        running.until("here", 2)
        begin = time.monotonic()
        run = running.end(signal.SIGTERM)
    assert run.code == 143
    assert "again" not in run.stderr
    assert time.monotonic() - begin < 10
