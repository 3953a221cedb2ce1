# SPDX-License-Identifier: Apache-2.0
"""What the ranks print reaches the launcher's own output, live and line by line."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from launching import environment, launch, start


def test_lines_of_several_ranks_are_not_mixed(tmp_path: Path) -> None:
    script = """
    import os
    for step in range(200):
        print("rank", os.environ["RANK"], "step", step)
    """
    run = launch(tmp_path, script, n=3)
    lines = run.stdout.splitlines()
    assert len(lines) == 600
    assert all(re.fullmatch(r"rank [012] step \d+", line) for line in lines)


def test_output_is_live_also_without_an_end_of_line(tmp_path: Path) -> None:
    script = """
    import os, sys, time
    if os.environ["RANK"] == "0":
        sys.stdout.write("working ...")
        time.sleep(60)
    """
    with start(tmp_path, script) as running:
        running.until("working ...")


def test_stderr_of_other_ranks_is_marked(tmp_path: Path) -> None:
    script = """
    import os, sys
    print("one\\ntwo", file=sys.stderr)
    print("out")
    """
    run = launch(tmp_path, script)
    assert sorted(run.stderr.splitlines()) == ["[rank 1] one", "[rank 1] two", "one", "two"]
    assert run.stdout == "out\nout\n"


def test_large_output_arrives_whole(tmp_path: Path) -> None:
    run = launch(tmp_path, "print(('x' * 99 + '\\n') * 20_000, end='')")
    assert run.stdout == ("x" * 99 + "\n") * 40_000


def test_a_reader_that_leaves_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("while True: print('y')\n")
    line = f"{sys.executable} -m paceline.commands.launch -n 2 script.py | head -2"
    env = environment("", None)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == b"y\ny\n"
    assert done.returncode == 1
    assert done.stderr.count(b"Traceback") == 1
    assert b"BrokenPipeError" in done.stderr


def test_standard_input_goes_to_rank_0(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys; print(os.environ['RANK'], repr(sys.stdin.read()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "paceline.commands.launch", "-n", "2", "script.py"],
        input=b"hello",
        env=environment("", None),
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert sorted(done.stdout.splitlines()) == [b"0 'hello'", b"1 ''"]


def in_terminal(argv: list[str], folder: Path, seconds: float = 60.0) -> tuple[int, str]:
    """Run a program on a terminal of 77 columns; give its exit code and what it showed."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 77, 0, 0))
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env=environment("", None), cwd=folder
    )
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
        elif process.poll() is not None:
            break
    os.close(master)
    code = process.wait(10)
    return code, shown.decode()


def test_on_a_terminal_ranks_have_one_too(tmp_path: Path) -> None:
    script = """
    import os, sys
    size = os.get_terminal_size(2)
    print("tty", sys.stdout.isatty(), sys.stderr.isatty(), size.columns, size.lines)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    argv = [sys.executable, "-m", "paceline.commands.launch", "-n", "2", "script.py"]
    code, shown = in_terminal(argv, tmp_path)
    assert code == 0
    assert shown == "tty True True 77 31\r\n" * 2


def test_a_progress_bar_is_shown_as_on_its_own(tmp_path: Path) -> None:
    script = """
    import os, time
    from tqdm import tqdm
    for _ in tqdm(range(4), disable=os.environ["RANK"] != "0"):
        time.sleep(0.1)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    argv = [sys.executable, "-m", "paceline.commands.launch", "-n", "2", "script.py"]
    code, shown = in_terminal(argv, tmp_path)
    assert code == 0
    assert "100%|" in shown
    assert "4/4 [" in shown
    widest = max(len(piece) for piece in re.split(r"[\r\n]+", shown))
    assert 70 <= widest <= 77  # it knows the width of the terminal
    assert shown.count("\n") == 1
