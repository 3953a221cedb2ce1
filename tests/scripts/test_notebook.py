# SPDX-License-Identifier: Apache-2.0
"""``notebook_launcher``, from scripts without a guard and from real notebooks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import harness
from launching import SLACK, Running, environment, no_new_names, start_argv

HEAD = "import os, sys, time\nfrom paceline.launchers import notebook_launcher\n"


def run(tmp_path: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script that calls notebook_launcher at its top level, without a guard."""
    path = tmp_path / "cell.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, str(path)],
        env=environment("", env),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def output(tmp_path: Path, script: str, **env: str) -> list[str]:
    done = run(tmp_path, script, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return sorted(done.stdout.splitlines())


def test_a_call_at_module_level_without_a_guard(tmp_path: Path) -> None:
    lines = output(
        tmp_path,
        """
        print("top level")
        os.environ["SET_IN_THE_CELL"] = "yes"
        scale = 10
        def helper(x):
            return x * scale
        def train(a, b):
            print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], helper(a) + b,
                  os.environ["SET_IN_THE_CELL"], os.environ["ACCELERATE_MIXED_PRECISION"],
                  os.environ["MASTER_PORT"])
        notebook_launcher(train, args=(1, 2), num_processes=2, mixed_precision="bf16",
                          use_port="29501")
        """,
    )
    assert lines == [
        "rank 0 of 2 12 yes bf16 29501",
        "rank 1 of 2 12 yes bf16 29501",
        "top level",
    ]


def test_classes_of_the_cell_go_there_and_back(tmp_path: Path) -> None:
    lines = output(
        tmp_path,
        """
        import dataclasses, pickle
        @dataclasses.dataclass
        class Point:
            x: int
            def double(self):
                return Point(2 * self.x)
        class Special(Point):
            def double(self):
                return super().double()
        def train(point):
            assert isinstance(point, Point)
            assert pickle.loads(pickle.dumps(point)) == point       # as gather_object does
            return {"made": point.double(), "kind": type(point).__name__}
        result = notebook_launcher(train, (Special(4),), num_processes=2)
        print(result, type(result["made"]) is Point)
        """,
    )
    assert lines == ["{'made': Point(x=8), 'kind': 'Special'} True"]


def test_closures_lambdas_methods_and_functions_by_name(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def train(x):\n    return ('beside', x)\n")
    lines = output(
        tmp_path,
        """
        import beside
        def make(n):
            return lambda x: n + x
        class Trainer:
            lr = 3
            def fit(self, x):
                return self.lr * x
        print(notebook_launcher(make(5), (1,), num_processes=2, use_port=0))
        print(notebook_launcher(Trainer().fit, (2,), num_processes=2, use_port="0"))
        print(notebook_launcher(beside.train, (3,), num_processes=2))
        """,
    )
    assert lines == ["('beside', 3)", "6", "6"]


def test_a_module_that_launches_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(
        "from paceline.launchers import notebook_launcher\n"
        "print('imported')\n"
        "def train():\n    return 7\n"
        "print(notebook_launcher(train, num_processes=2))\n"
    )
    assert output(tmp_path, "import inner") == ["7", "imported"]


def test_large_arguments(tmp_path: Path) -> None:
    lines = output(
        tmp_path,
        """
        data = bytes(50_000_000)
        def train():
            return len(data), data
        n, back = notebook_launcher(train, num_processes=2)
        print(n, back == data)
        """,
    )
    assert lines == ["50000000 True"]


def test_one_process_runs_here_and_leaves_no_trace(tmp_path: Path) -> None:
    lines = output(
        tmp_path,
        """
        seen = []
        def train(x):
            seen.append((x, os.getpid(), os.environ["ACCELERATE_MIXED_PRECISION"]))
            return x + 1
        print(notebook_launcher(train, (1,), num_processes=1, mixed_precision="bf16"))
        print(seen == [(1, os.getpid(), "bf16")], "ACCELERATE_MIXED_PRECISION" in os.environ)
        """,
    )
    assert lines == ["2", "True False"]


@pytest.mark.parametrize(
    ("call", "precision"),
    [
        ("num_processes=2", "bf16"),  # nothing said: the environment of the cell
        ("num_processes=2, mixed_precision='no'", "no"),
        ("num_processes=1", "bf16"),
    ],
)
def test_precision_argument_beats_environment(tmp_path: Path, call: str, precision: str) -> None:
    script = f"""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    def train():
        return os.environ["ACCELERATE_MIXED_PRECISION"]
    print(notebook_launcher(train, {call}))
    """
    assert output(tmp_path, script) == [precision]


def test_a_childs_exception_is_raised_here(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class MyError(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")
        def step(x):
            raise MyError(1, 2) if x == "mine" else KeyError(x)
        def train(x):
            if os.environ["RANK"] == "1":
                time.sleep(0.2)
                step(x)
            time.sleep(60)
        for x in ("weight", "mine"):
            begin = time.monotonic()
            try:
                notebook_launcher(train, (x,), num_processes=2)
            except KeyError as caught:
                print("caught", caught, caught.__notes__, "in step" in str(caught.__cause__))
            except RuntimeError as caught:
                print("caught", caught, caught.__notes__)
            assert time.monotonic() - begin < 10
        notebook_launcher(train, ("last",), num_processes=2)
        """,
    )
    assert done.stdout.splitlines()[0] == "caught 'weight' ['raised in rank 1 of 2'] True"
    # An exception that cannot be made again here is told by its name.
    assert done.stdout.splitlines()[1] == "caught MyError: 1 and 2 ['raised in rank 1 of 2']"
    assert done.returncode == 1
    assert done.stderr.count("in step\n    raise MyError(1, 2)") == 1  # the child's own lines, once
    assert "in rank 1:\n\nTraceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("KeyError: 'last'\nraised in rank 1 of 2")


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os.kill(os.getpid(), 9)", r"rank 1 \(pid \d+\) was killed by SIGKILL.*rank 0 was stop"),
        ("os._exit(3)", r"rank 1 \(pid \d+\) ended with exit code 3; rank 0 was stopped"),
        ("sys.exit(4)", r"rank 1 \(pid \d+\) ended with exit code 4"),
        ("import ctypes; ctypes.string_at(0)", r"killed by SIGSEGV(.|\n)*cell.py.*in train"),
    ],
)
def test_a_child_that_just_dies(tmp_path: Path, end: str, text: str) -> None:
    done = run(
        tmp_path,
        f"""
        def train():
            if os.environ["RANK"] == "1":
                {end}
            time.sleep(60)
        try:
            notebook_launcher(train, num_processes=2)
        except RuntimeError as error:
            print(error)
        print(notebook_launcher(lambda: "again", num_processes=2))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(text, done.stdout), done.stdout
    assert done.stdout.endswith("again\n")


def test_sys_exit_0_is_an_end_like_any_other(tmp_path: Path) -> None:
    assert output(tmp_path, "print(notebook_launcher(sys.exit, (0,), num_processes=2))") == ["None"]


@pytest.mark.parametrize(
    ("setup", "body", "text"),
    [
        (
            "import threading; lock = threading.Lock()",
            "lock",
            r"train\(\) -> global 'lock' is a _thread.lock, which cannot be sent",
        ),
        (
            "import sqlite3; db = sqlite3.connect(':memory:')\ndef query():\n    return db",
            "query()",
            r"train\(\) -> global 'query' -> global 'db' is a sqlite3.Connection",
        ),
        (
            "class Data:\n    pass\ndata = Data(); data.parts = [1, (i for i in ())]",
            "[data for _ in ()]",
            r"global 'data' -> .parts -> \[1\] is a builtins.generator",
        ),
        (
            "def make():\n    g = (i for i in ())\n    return lambda: g\nget = make()",
            "get()",
            r"global 'get' -> variable 'g' is a builtins.generator",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, setup: str, body: str, text: str) -> None:
    script = f"""
{setup}
def train():
    {body}
try:
    notebook_launcher(train, num_processes=2)
except TypeError as error:
    print(error)
"""
    lines = output(tmp_path, script)
    assert len(lines) == 1
    assert re.search(text, lines[0]), lines[0]
    assert "create it inside train(), or do not use it there" in lines[0]


def test_an_argument_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    script = """
    try:
        notebook_launcher(print, (1, sys.stdin), num_processes=2)
    except TypeError as error:
        print(error)
    """
    assert output(tmp_path, script)[0].startswith("[notebook_launcher] args[1] is a _io.TextIO")


def test_a_result_that_cannot_be_sent_is_none_with_a_warning(tmp_path: Path) -> None:
    done = run(tmp_path, "print(notebook_launcher(lambda: (i for i in ()), num_processes=2))")
    assert done.returncode == 0
    assert done.stdout == "None\n"
    assert "the value that the function returned in rank 0 cannot be sent" in done.stderr
    assert "cell.py:3: UserWarning" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("print", "ValueError: [notebook_launcher] num_processes is missing"),
        ("print, num_processes=0", "ValueError: [notebook_launcher] num_processes is wrong: got 0"),
        ("print, num_processes='2'", "num_processes is wrong: got '2', expected an integer"),
        ("None, num_processes=2", "TypeError: [notebook_launcher] function is wrong: got None"),
        ("print, 3, num_processes=2", "TypeError: [notebook_launcher] args is wrong: got 3"),
        ("print, (), 2, 'bf61'", "ValueError: [notebook_launcher] mixed_precision is wrong"),
        ("print, (), 2, 'no', 'http'", "ValueError: [notebook_launcher] use_port is wrong"),
        ("print, num_processes=2, num_nodes=2", "num_nodes is wrong: got 2, expected 1"),
        ("print, num_processes=2, node_rank=1", "node_rank is wrong: got 1, expected 0"),
        ("print, num_processes=2, max_restarts=1", "max_restarts is wrong: got 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: str, error: str) -> None:
    done = run(tmp_path, f"notebook_launcher({arguments})")
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1]


def test_inside_a_job_it_says_so(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        def outer():
            notebook_launcher(print, num_processes=2)
        notebook_launcher(outer, num_processes=2)
        """,
    )
    assert "called inside a process of a job (rank 0 of 2)" in done.stderr


def test_an_argument_that_cannot_be_made_again(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(a)
        notebook_launcher(print, (Odd(1, 2),), num_processes=2)
        """,
    )
    assert "raised while a process loaded the function and its arguments" in done.stderr
    assert "missing 1 required positional argument: 'b'" in done.stderr


def test_debug_launcher(tmp_path: Path) -> None:
    script = """
    from paceline.launchers import debug_launcher
    def train():
        return os.environ["ACCELERATE_USE_CPU"], os.environ["WORLD_SIZE"]
    print(debug_launcher(train), "ACCELERATE_USE_CPU" in os.environ)
    """
    assert output(tmp_path, script) == ["('true', '2') False"]


# --- ends ---------------------------------------------------------------------------------------

SLEEPERS = """
def train():
    if os.fork() == 0:
        time.sleep(60)
    print("UP", flush=True)
    time.sleep(60)
notebook_launcher(train, num_processes=2)
"""


def sleepers(tmp_path: Path, running: Running) -> None:
    running.until("UP", times=2)
    assert len(harness.tagged(running.tag)) >= 5


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_the_parent(tmp_path: Path, sig: int) -> None:
    (tmp_path / "cell.py").write_text(HEAD + SLEEPERS)
    before = harness.names()
    with start_argv(tmp_path, [sys.executable, "cell.py"]) as running:
        sleepers(tmp_path, running)
        run = running.end(sig)
        assert run.code == -sig
        assert run.seconds < 2.0 * SLACK
        assert running.left(1.0 * SLACK) == []
        print(f"{signal.Signals(sig).name} to the parent: it left after {run.seconds:.2f} s")
        if sig == signal.SIGINT:
            assert run.stderr.splitlines().count("KeyboardInterrupt") == 2  # theirs and ours
            assert "in rank 0:\n" in run.stderr
    no_new_names(before)


# --- real notebooks -----------------------------------------------------------------------------


def execute(tmp_path: Path, *cells: str, allow_errors: bool = False) -> list[list[Any]]:
    """Execute the cells of a notebook in one kernel; give the outputs of each."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    client = nbclient.NotebookClient(notebook, timeout=100, allow_errors=allow_errors)
    client.execute(cwd=str(tmp_path), env=environment("", {"HOME": str(tmp_path)}))
    return [cell.outputs for cell in notebook.cells]


def text_of(outputs: list[Any], stream: str = "stdout") -> str:
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == stream)


@pytest.mark.filterwarnings("ignore")  # of nbclient's own libraries
def test_a_real_notebook(tmp_path: Path) -> None:
    outputs = execute(
        tmp_path,
        HEAD + "from tqdm import tqdm\nclass Net:\n    width = 3\n",
        """
        def train(steps):
            for _ in tqdm(range(steps), disable=os.environ["RANK"] != "0"):
                time.sleep(0.02)
            print("hello from", os.environ["RANK"])
            os.system("echo from a child of the rank")
            return Net
        result = notebook_launcher(train, (5,), num_processes=2)
        result is Net, result.width
        """,
        "notebook_launcher(train, (1,), num_processes=2, use_port='29501') is Net",
        """
        def broken():
            if os.environ["RANK"] == "1":
                raise ValueError("in the cell")
            time.sleep(60)
        notebook_launcher(broken, num_processes=2)
        """,
        "notebook_launcher(train, (1,), num_processes=2).width",
        allow_errors=True,
    )
    assert sorted(text_of(outputs[1]).splitlines()) == [
        "from a child of the rank",
        "from a child of the rank",
        "hello from 0",
        "hello from 1",
    ]
    assert "5/5 [" in text_of(outputs[1], "stderr")
    assert outputs[1][-1].data["text/plain"] == "(True, 3)"
    assert outputs[2][-1].data["text/plain"] == "True"
    error = outputs[3][-1]
    assert (error.output_type, error.ename, error.evalue) == ("error", "ValueError", "in the cell")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    assert "in rank 1:" in shown
    assert 'raise ValueError("in the cell")' in shown  # the line of the cell, from the child
    assert "raised in rank 1 of 2" in shown
    assert outputs[4][-1].data["text/plain"] == "3"


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_cell_ends_its_processes(tmp_path: Path) -> None:
    import threading

    tag_file = tmp_path / "pids"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if tag_file.exists() and len(tag_file.read_text().split()) == 3:
                os.kill(int(tag_file.read_text().split()[0]), signal.SIGINT)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outputs = execute(
        tmp_path,
        HEAD + "def note():\n    open('pids', 'a').write(f'{os.getpid()}\\n')\nnote()",
        """
        def train():
            note()
            time.sleep(60)
        notebook_launcher(train, num_processes=2)
        """,
        "notebook_launcher(lambda: 'works again', num_processes=2)",
        allow_errors=True,
    )
    thread.join()
    assert outputs[1][-1].ename == "KeyboardInterrupt"
    assert outputs[2][-1].data["text/plain"] == "'works again'"
    for pid in tag_file.read_text().split()[1:]:
        assert not Path(f"/proc/{pid}").exists()
