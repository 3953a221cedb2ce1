# SPDX-License-Identifier: Apache-2.0
"""Signals to the launcher and deaths at random moments: everything is gone in time (A6-A8, T5)."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import harness
from launching import SLACK, no_new_names, start

# Two ranks, each with a forked worker, a helper process and one that made its own session.
FAMILY = """
import os, signal, subprocess, sys, time
if "ignore" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("RANK", os.environ["RANK"], os.getpid(), flush=True)
for _ in range(2):
    if os.fork() == 0:
        os.write(1, f"WORKER {os.environ['RANK']} {os.getpid()}\\n".encode())
        time.sleep(60)
        os._exit(0)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("UP", flush=True)
time.sleep(60)
"""


def pids(stdout: str, word: str) -> dict[int, int]:
    rows = [line.split() for line in stdout.splitlines() if line.startswith(word + " ")]
    return {int(rank): int(pid) for _, rank, pid in rows}


@pytest.mark.parametrize(
    ("sig", "code", "promised_s"),
    [(signal.SIGINT, 130, 2.0), (signal.SIGTERM, 143, 1.0), (signal.SIGHUP, 129, 1.0)],
)
def test_signals_end_the_job(tmp_path: Path, sig: int, code: int, promised_s: float) -> None:
    with start(tmp_path, FAMILY) as running:
        running.until("UP", times=2)
        run = running.end(sig)
        assert run.code == code
        assert running.left(0.0) == []
        print(f"{signal.Signals(sig).name}: launcher gone after {run.seconds:.2f} s")
        assert run.seconds < promised_s * SLACK
        assert run.stderr.count("Traceback") == (1 if sig == signal.SIGINT else 0)
        assert "paceline/commands" not in run.stderr  # no traceback of the launcher


def test_ctrl_c_ends_ranks_that_catch_it(tmp_path: Path) -> None:
    script = """
    import time
    print("UP", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("no", flush=True)
    """
    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        run = running.end(signal.SIGINT)
        assert run.code == 130
        assert run.stdout.count("no") == 2  # forwarded once
        assert run.seconds < 2.0 * SLACK
        print(f"Ctrl-C, ranks go on: launcher gone after {run.seconds:.2f} s (promised 2)")


def test_ctrl_c_twice_does_not_wait(tmp_path: Path) -> None:
    script = """
    import signal, time
    signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
    print("UP", flush=True)
    while True:
        time.sleep(0.1)
    """
    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        running.process.send_signal(signal.SIGINT)
        running.until("heard", times=2)
        assert running.end(signal.SIGINT).code == 130
        assert running.left(0.0) == []


def test_ranks_that_clean_up_and_leave_with_0_make_it_0(tmp_path: Path) -> None:
    script = """
    import signal, sys, time
    def save(*_):
        time.sleep(0.3)
        print("saved", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    print("UP", flush=True)
    time.sleep(60)
    """
    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        run = running.end(signal.SIGTERM)
        assert run.code == 0
        assert run.stdout.count("saved") == 2


def test_ranks_that_ignore_sigterm_die_after_the_grace(tmp_path: Path) -> None:
    with start(tmp_path, FAMILY, "--grace_period", "1", args=("ignore",)) as running:
        running.until("UP", times=2)
        run = running.end(signal.SIGTERM)
        assert run.code == 143
        assert running.left(0.0) == []
        assert 1.0 <= run.seconds < 2.0 * SLACK


def test_frozen_ranks_end_too(tmp_path: Path) -> None:
    with start(tmp_path, FAMILY) as running:
        running.until("UP", times=2)
        for pid in pids(running.stdout, "RANK").values():
            os.kill(pid, signal.SIGSTOP)
        run = running.end(signal.SIGTERM)
        assert run.code == 143
        assert run.seconds < 1.0 * SLACK


def test_under_nohup_the_hang_up_is_ignored(tmp_path: Path) -> None:
    import sys

    from launching import start_argv

    (tmp_path / "script.py").write_text("print('UP', flush=True)\nimport time\ntime.sleep(0.7)\n")
    line = f"trap '' HUP; exec {sys.executable} -m paceline.commands.launch -n 2 script.py"
    with start_argv(tmp_path, ["sh", "-c", line]) as running:
        running.until("UP", times=2)
        assert running.end(signal.SIGHUP).code == 0


def test_user_signals_reach_the_ranks(tmp_path: Path) -> None:
    script = """
    import signal, sys, time
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
    print("UP", flush=True)
    time.sleep(60)
    """
    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        assert running.end(signal.SIGUSR1).code == 0


def test_ctrl_z_stops_the_ranks_and_they_go_on(tmp_path: Path) -> None:
    script = """
    import time
    print("UP", flush=True)
    for at in range(10_000):
        print("tick", flush=True)
        time.sleep(0.02)
    """

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        running.process.send_signal(signal.SIGTSTP)
        deadline = time.monotonic() + 10
        stopped: list[int] = []
        # The launcher may stand still before a rank that it signalled has had its turn to stop.
        while len(stopped) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            stopped = [pid for pid in harness.tagged(running.tag) if state(pid) == "T"]
        assert len(stopped) == 3  # the launcher and two ranks
        assert running.process.pid in stopped
        ticks = running.stdout.count("tick")
        running.process.send_signal(signal.SIGCONT)
        running.until("tick", times=ticks + 4)
        assert running.end(signal.SIGTERM).code == 143


VICTIMS = ["launcher", "rank 0", "rank 1", "worker", "launcher and ranks", "everything"]


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_is_left_after_a_kill(tmp_path: Path, victim: str) -> None:
    before = harness.names()
    rng = random.Random(VICTIMS.index(victim))
    for early in (False, True):
        with start(tmp_path, FAMILY, args=("ignore",) * (victim == "launcher")) as running:
            if early:  # any moment of the start
                time.sleep(rng.uniform(0.02, 0.25))
                if victim != "everything":
                    victims = [running.process.pid]
                else:
                    victims = harness.tagged(running.tag)
            else:
                running.until("UP", times=2)
                victims = chosen(running.process.pid, running.stdout, victim)
                victims = victims or harness.tagged(running.tag)
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            begin = time.monotonic()
            if victim == "worker" and not early:  # of no consequence for the job
                time.sleep(0.2)
                assert running.process.poll() is None
                running.process.kill()
            assert running.left(1.0 * SLACK) == []
            print(f"{victim}: all gone after {time.monotonic() - begin:.2f} s (promised 1)")
            code = running.end().code
            if not early and victim.startswith("rank"):
                assert code == 137
    no_new_names(before)


def chosen(launcher: int, stdout: str, victim: str) -> list[int]:
    ranks = pids(stdout, "RANK")
    return {
        "launcher": [launcher],
        "rank 0": [ranks[0]],
        "rank 1": [ranks[1]],
        "worker": [pids(stdout, "WORKER")[0]],
        "launcher and ranks": [launcher, *ranks.values()],
        "everything": [],
    }[victim]


def test_a_killed_helper_is_replaced(tmp_path: Path) -> None:
    def reapers() -> set[int]:
        found = set()
        for pid in harness.tagged(running.tag):
            if b"reaper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        return found

    with start(tmp_path, FAMILY) as running:
        running.until("UP", times=2)
        (first,) = reapers()
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not reapers() - {first} and time.monotonic() < deadline:
            time.sleep(0.01)
        running.process.kill()
        assert running.left(1.0 * SLACK) == []


def test_a_quit_of_the_launcher_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, FAMILY) as running:
        running.until("UP", times=2)
        assert running.end(signal.SIGQUIT).code == -signal.SIGQUIT
        assert running.left(1.0 * SLACK) == []


def test_a_clean_end_ends_forgotten_helpers_but_not_daemons(tmp_path: Path) -> None:
    script = """
    import subprocess, sys
    subprocess.Popen(["sleep", "60"])
    subprocess.Popen(["sleep", "61"], start_new_session=True)
    """
    with start(tmp_path, script, n=1) as running:
        assert running.end().code == 0
        names = [Path(f"/proc/{p}/cmdline").read_bytes() for p in harness.tagged(running.tag)]
        assert names == [b"sleep\x0061\x00"]
