# SPDX-License-Identifier: Apache-2.0
"""When a rank fails: its traceback once, its exit code, and nobody left."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launching import SLACK, launch
from paceline.commands.verdict import Ending, exit_code, root_cause, summary

PEER_SLEEPS = """
import os, sys, time
if os.environ["RANK"] == "0":
    time.sleep(60)
time.sleep(0.1)
"""


def test_the_first_traceback_is_shown_once(tmp_path: Path) -> None:
    run = launch(tmp_path, PEER_SLEEPS + "raise ValueError('first of all')")
    assert run.code == 1
    assert run.stderr.count("Traceback (most recent call last)") == 1
    assert run.stderr.count("ValueError: first of all") == 1
    assert 'script.py", line 6, in <module>' in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("paceline launch: rank 1 (pid ")
    assert last.endswith("raised ValueError; rank 0 was stopped")
    print(f"rank 1 raised: launcher gone after {run.seconds:.2f} s")


def test_a_mistake_of_all_ranks_is_shown_once(tmp_path: Path) -> None:
    run = launch(tmp_path, "undefined_name", n=3)
    assert run.code == 1
    assert run.stderr.count("NameError: name 'undefined_name' is not defined") == 1
    assert "rank 0 (pid " in run.stderr


@pytest.mark.parametrize(
    ("script", "text", "code"),
    [
        ("def f(:\n  pass\n", "SyntaxError: invalid syntax", 1),
        ("import argparse\nargparse.ArgumentParser().parse_args(['-x'])", "unrecognized", 2),
        ("raise SystemExit('no data found')", "no data found", 1),
    ],
)
def test_messages_that_are_no_tracebacks_too(
    tmp_path: Path, script: str, text: str, code: int
) -> None:
    run = launch(tmp_path, script)
    assert run.code == code
    assert run.stderr.count(text) == 1, run.stderr


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        ("sys.exit(3)", 3, "ended with exit code 3"),
        ("os._exit(77)", 77, "ended with exit code 77"),
        ("os.kill(os.getpid(), 9)", 137, "was killed by SIGKILL (which the kernel also sends"),
        ("os.kill(os.getpid(), 15)", 143, "was killed by SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", 139, "was killed by SIGSEGV"),
    ],
)
def test_exit_codes(tmp_path: Path, end: str, code: int, text: str) -> None:
    run = launch(tmp_path, PEER_SLEEPS + end)
    assert run.code == code
    assert f"rank 1 (pid {run.stderr.split('(pid ')[-1].split(')')[0]}) {text}" in run.stderr
    assert "; rank 0 was stopped" in run.stderr
    if code == 139:
        assert 'script.py", line 6 in <module>' in run.stderr  # where it crashed


def test_one_process_is_as_plain_python(tmp_path: Path) -> None:
    run = launch(tmp_path, "import sys; print('x'); sys.exit(5)", n=1)
    assert (run.code, run.stdout, run.stderr) == (5, "x\n", "")
    run = launch(tmp_path, "raise ValueError('y')", n=1)
    assert run.code == 1
    assert run.stderr.endswith("ValueError: y\n")
    run = launch(tmp_path, "import os; os.kill(os.getpid(), 9)", n=1)
    assert run.code == 137
    assert "was killed by SIGKILL" in run.stderr


def test_an_early_end_without_an_error_stops_nobody(tmp_path: Path) -> None:
    script = """
    import os, time
    if os.environ["RANK"] == "0":
        time.sleep(0.5)
        print("done")
    """
    run = launch(tmp_path, script)
    assert (run.code, run.stdout, run.stderr) == (0, "done\n", "")


def test_peers_may_say_their_own_last_words(tmp_path: Path) -> None:
    script = """
    import os, signal, sys, time
    if os.environ["RANK"] == "1":
        time.sleep(0.2)
        sys.exit(4)
    def leave(*_):
        print("rank 0 saved", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    time.sleep(60)
    """
    run = launch(tmp_path, script)
    assert run.code == 4
    assert run.stdout == "rank 0 saved\n"


def test_a_peer_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    ignore = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    run = launch(tmp_path, ignore + PEER_SLEEPS + "sys.exit(4)", "--grace_period", "0.5")
    assert run.code == 4
    assert run.seconds < 1.5 * SLACK


def test_what_a_failed_rank_started_is_ended(tmp_path: Path) -> None:
    script = """
    import os, subprocess, sys, time
    subprocess.Popen(["sleep", "60"])
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    if os.fork() == 0:
        time.sleep(60)
    time.sleep(0.2)
    sys.exit(int(os.environ["RANK"]))
    """
    run = launch(tmp_path, script)  # asserts that nothing is left
    assert run.code == 1


def test_a_logged_exception_is_not_a_failure(tmp_path: Path) -> None:
    script = """
    import logging, sys, time
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("went on")
    time.sleep(0.6)
    print("end", file=sys.stderr)
    """
    run = launch(tmp_path, script)
    assert run.code == 0
    assert run.stderr.count("Traceback (most recent call last)") == 2
    assert run.stderr.count("[rank 1] ZeroDivisionError: division by zero") == 1
    assert run.stderr.count("end\n") == 2


def test_the_reported_failure_wins_over_the_first_exit(tmp_path: Path) -> None:
    # Rank 0 follows and is gone first; rank 1, whose failure it was, takes its time to end.
    script = """
    import os, sys, time
    from paceline.distributed.error_file import write_error_file
    if os.environ["RANK"] == "1":
        write_error_file("KeyError", "'weight'")
        print("Traceback (most recent call last):\\nKeyError: 'weight'", file=sys.stderr)
        time.sleep(0.3)
        sys.exit(1)
    time.sleep(0.1)
    class RemoteError(RuntimeError): pass
    raise RemoteError("rank 1 raised KeyError")
    """
    run = launch(tmp_path, script)
    assert run.code == 1
    assert "rank 1 (pid" in run.stderr
    assert "KeyError: 'weight'\n" in run.stderr
    assert "RemoteError" not in run.stderr


def ending(rank: int, code: int, at: float, kind: str = "", **more: object) -> Ending:
    return Ending(rank, 100 + rank, code, at, kind=kind, **more)  # type: ignore[arg-type]


def test_root_cause() -> None:
    assert root_cause([ending(0, 0, 1.0), ending(1, 0, 2.0)]) is None
    follower = ending(0, 1, 1.0, "PeerLostError")
    killed = ending(1, -signal.SIGKILL, 1.5)
    stopped = ending(2, -signal.SIGTERM, 0.5, told=True, stopped=True)
    assert root_cause([follower, killed, stopped]) is killed
    assert root_cause([follower, ending(1, 1, 0.9, "RemoteError")]).rank == 1  # type: ignore[union-attr]
    alike = [ending(rank, 1, 2.0 - 0.1 * rank, "NameError", message="x") for rank in range(3)]
    assert root_cause(alike) is alike[0]
    assert exit_code(killed) == 137
    lines = summary(killed, [follower, killed, stopped])
    assert lines == [
        "rank 1 (pid 101) was killed by SIGKILL (which the kernel also sends when memory runs "
        "out); rank 2 was stopped"
    ]
    other = ending(3, 1, 3.0, "KeyError", message="'k'")
    assert summary(killed, [killed, other])[1:] == ["rank 3 failed too: KeyError: 'k'"]


def test_a_rank_that_raised_and_hangs_in_its_exit_is_still_the_cause() -> None:
    root = ending(0, -signal.SIGTERM, 1.0, "ValueError", stopped=True)
    assert root_cause([root, ending(1, 1, 1.2, "RemoteError")]) is root
    assert exit_code(root) == 1
    assert "raised ValueError and did not end by itself" in summary(root, [root])[0]
