# SPDX-License-Identifier: Apache-2.0
"""What the launcher hands to the ranks: environment, arguments, cores; and where it comes from."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from launching import Run, command, launch
from paceline.commands import cores

SHOW = """
import json, os, sys
print("SEEN " + json.dumps({
    "env": dict(os.environ), "argv": sys.argv, "name": __name__, "file": __file__,
    "cpus": sorted(os.sched_getaffinity(0)), "unbuffered": sys.stdout.write_through,
    "stdin": os.path.realpath("/proc/self/fd/0"), "session": os.getsid(0) == os.getpid(),
    "path0": sys.path[0],
}))
"""


def seen(run: Run) -> list[dict[str, Any]]:
    assert run.code == 0, run.stderr
    rows = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("SEEN ")]
    return sorted(rows, key=lambda row: int(row["env"]["RANK"]))


def test_two_processes_get_torchruns_and_accelerates_environment(tmp_path: Path) -> None:
    rows = seen(launch(tmp_path, SHOW, "--mixed_precision", "bf16", "--cpu"))
    assert [row["env"]["RANK"] for row in rows] == ["0", "1"]
    run_ids = {row["env"]["PACELINE_RUN_ID"] for row in rows}
    assert len(run_ids) == 1
    assert re.fullmatch(r"[0-9a-f]{32}", run_ids.pop())
    for rank, row in enumerate(rows):
        env = row["env"]
        assert env["LOCAL_RANK"] == str(rank)
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["GROUP_RANK"]) == ("2", "2", "0")
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert 0 < int(env["MASTER_PORT"]) < 65536
        assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
        assert env["ACCELERATE_USE_CPU"] == "true"
        assert env["NCCL_SOCKET_IFNAME"] == "lo"  # nothing listens beyond this machine
        assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in env
        assert row["unbuffered"]
        assert row["session"]
    assert rows[0]["env"]["MASTER_PORT"] == rows[1]["env"]["MASTER_PORT"]


def test_arguments_after_the_script_are_the_scripts(tmp_path: Path) -> None:
    args = ("--num_processes", "7", "-m", "--help", "--", "a b", "")
    rows = seen(launch(tmp_path, SHOW, args=args))
    assert len(rows) == 2
    assert rows[0]["argv"] == [str(tmp_path / "script.py"), *args]
    assert rows[0]["path0"] == str(tmp_path)


@pytest.mark.parametrize("n", [1, 3])
def test_exactly_the_processes_that_were_asked_for(tmp_path: Path, n: int) -> None:
    rows = seen(launch(tmp_path, SHOW, n=n))
    assert [int(row["env"]["RANK"]) for row in rows] == list(range(n))
    assert {row["env"]["WORLD_SIZE"] for row in rows} == {str(n)}


def test_flags_with_dashes_and_short_flags(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SHOW)
    flags = ("-n", "2", "--mixed-precision=fp16", "--gradient-accumulation-steps", "4")
    rows = seen(command(tmp_path, "launch", *flags, "--debug", "script.py"))
    assert len(rows) == 2
    assert rows[1]["env"]["ACCELERATE_MIXED_PRECISION"] == "fp16"
    assert rows[1]["env"]["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"
    assert rows[1]["env"]["ACCELERATE_DEBUG_MODE"] == "true"


def test_module(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text(SHOW)
    rows = seen(command(tmp_path, "launch", "-n", "2", "-m", "package.train", "--x"))
    assert len(rows) == 2
    assert rows[0]["name"] == "__main__"
    assert rows[0]["argv"][1:] == ["--x"]


def test_program_that_is_not_python(tmp_path: Path) -> None:
    words = ("launch", "-n", "2", "--no_python", "sh", "-c", "echo rank $RANK of $WORLD_SIZE")
    run = command(tmp_path, *words)
    assert run.code == 0, run.stderr
    assert sorted(run.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]


def test_folder_with_main(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(SHOW)
    assert len(seen(command(tmp_path, "launch", "-n", "2", "app"))) == 2


def test_cores_are_shared_out_and_pinned(tmp_path: Path) -> None:
    rows = seen(launch(tmp_path, SHOW))
    available = os.sched_getaffinity(0)
    if len(cores.available_cores()) < 2:
        pytest.skip("one core only")
    assert not set(rows[0]["cpus"]) & set(rows[1]["cpus"])
    assert set(rows[0]["cpus"]) | set(rows[1]["cpus"]) == available
    threads = str(len(cores.available_cores()) // 2)
    assert {row["env"]["OMP_NUM_THREADS"] for row in rows} == {threads}


@pytest.mark.parametrize(
    ("flags", "env", "threads"),
    [
        (("--num_cpu_threads_per_process", "64"), {}, "64"),
        ((), {"OMP_NUM_THREADS": "64"}, "64"),
        (("--num_cpu_threads_per_process=1",), {"OMP_NUM_THREADS": "64"}, "1"),
    ],
)
def test_threads(tmp_path: Path, flags: tuple[str, ...], env: dict[str, str], threads: str) -> None:
    rows = seen(launch(tmp_path, SHOW, *flags, env=env))
    assert {row["env"]["OMP_NUM_THREADS"] for row in rows} == {threads}
    if threads == "64":  # more threads than cores were asked for: then nobody is pinned
        assert set(rows[0]["cpus"]) == os.sched_getaffinity(0)


def test_pinning_can_be_turned_off(tmp_path: Path) -> None:
    rows = seen(launch(tmp_path, SHOW, env={"PACELINE_PIN": "0"}))
    assert set(rows[0]["cpus"]) == os.sched_getaffinity(0)


def test_more_processes_than_cores_are_not_pinned(tmp_path: Path) -> None:
    n = len(os.sched_getaffinity(0)) + 1
    if n > 8:
        pytest.skip("too many cores to outnumber")
    rows = seen(launch(tmp_path, SHOW, n=n))
    assert len(rows) == n
    assert all(set(row["cpus"]) == os.sched_getaffinity(0) for row in rows)
    assert {row["env"]["OMP_NUM_THREADS"] for row in rows} == {"1"}


def fake_cores(monkeypatch: pytest.MonkeyPatch, sets: list[set[int]]) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: [frozenset(s) for s in sets])
    monkeypatch.setattr(cores, "_quota", lambda: float("inf"))


def test_hardware_threads_of_a_core_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cores(monkeypatch, [{0, 4}, {1, 5}, {2, 6}, {3, 7}])
    shares = cores.share_out(2)
    assert [share.threads for share in shares] == [2, 2]
    assert [set(share.cpus) for share in shares] == [{0, 4, 1, 5}, {2, 6, 3, 7}]


def test_uneven_shares_use_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cores(monkeypatch, [{0}, {1}, {2}, {3}, {4}])
    shares = cores.share_out(2)
    assert [share.threads for share in shares] == [2, 2]
    assert [set(share.cpus) for share in shares] == [{0, 1, 2}, {3, 4}]


def test_more_ranks_than_cores_take_hardware_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cores(monkeypatch, [{0, 2}, {1, 3}])
    assert [set(share.cpus) for share in cores.share_out(4)] == [{0}, {1}, {2}, {3}]
    assert [share.cpus for share in cores.share_out(5)] == [frozenset()] * 5


def test_a_quota_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cores(monkeypatch, [{cpu} for cpu in range(16)])
    monkeypatch.setattr(cores, "_quota", lambda: 4.0)
    assert [share.threads for share in cores.share_out(2)] == [2, 2]


PRECEDENCE = """
import os
print("GOT", os.environ["RANK"], os.environ["ACCELERATE_MIXED_PRECISION"],
      os.environ.get("ACCELERATE_USE_CPU", "-"))
"""


def test_command_line_beats_environment_beats_file_beats_default_file(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PRECEDENCE)
    place = tmp_path / "home" / "accelerate"
    place.mkdir(parents=True)
    default = "num_processes: 3\nmixed_precision: bf16\nuse_cpu: true\n"
    (place / "default_config.yaml").write_text(default)
    (tmp_path / "mine.yaml").write_text("num_processes: 2\nmixed_precision: fp16\n")

    def got(*flags: str, **env: str) -> list[str]:
        env = {"HF_HOME": str(tmp_path / "home"), **env}
        run = command(tmp_path, "launch", *flags, "script.py", env=env)
        assert run.code == 0, run.stderr
        return sorted(line for line in run.stdout.splitlines() if line.startswith("GOT"))

    assert got() == ["GOT 0 bf16 true", "GOT 1 bf16 true", "GOT 2 bf16 true"]
    assert got("--config_file", "mine.yaml") == ["GOT 0 fp16 -", "GOT 1 fp16 -"]
    environment = {"ACCELERATE_MIXED_PRECISION": "no"}
    file = ("--config_file", "mine.yaml")
    assert got(*file, **environment) == ["GOT 0 no -", "GOT 1 no -"]
    flags = ("-n", "1", "--mixed_precision", "bf16", "--cpu")
    assert got(*file, *flags, **environment) == ["GOT 0 bf16 true"]
    assert got("-n1", ACCELERATE_USE_CPU="false") == ["GOT 0 bf16 false"]


def test_plain_module_call_of_the_tutorials(tmp_path: Path) -> None:
    run = launch(tmp_path, PRECEDENCE, "--cpu", args=("--arg1",))
    assert run.code == 0
    assert run.stderr == ""
    assert sorted(run.stdout.splitlines()) == ["GOT 0 no true", "GOT 1 no true"]
    print(f"paceline launch of 2 scripts that only print: {run.seconds:.2f} s, {sys.version_info}")


# --- torchrun's spellings, bare variables, devices ------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("--nproc_per_node=3",),
        ("--nproc-per-node", "3", "--nnodes=1:1", "--node_rank", "0", "--standalone"),
        ("--num_processes", "3", "--same_network", "--rdzv_backend", "static", "--role", "train"),
        ("-n", "3", "--monitor_interval", "5", "--enable_cpu_affinity", "--dynamo_backend", "no"),
    ],
)
def test_other_spellings(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    run = command(tmp_path, "launch", *flags, "show.py")
    assert [row["env"]["WORLD_SIZE"] for row in seen(run)] == ["3"] * 3


def test_processes_per_core(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    rows = seen(command(tmp_path, "launch", "--nproc_per_node=cpu", "show.py"))
    assert len(rows) == len(cores.available_cores())


def test_a_bare_mixed_precision_in_the_environment(tmp_path: Path) -> None:
    rows = seen(launch(tmp_path, SHOW, env={"MIXED_PRECISION": "bf16"}))
    assert rows[0]["env"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    both = {"MIXED_PRECISION": "fp16", "ACCELERATE_MIXED_PRECISION": "no"}
    rows = seen(launch(tmp_path, SHOW, env=both))
    assert rows[0]["env"]["ACCELERATE_MIXED_PRECISION"] == "no"
    (tmp_path / "show.py").write_text(SHOW)
    run = command(tmp_path, "launch", "show.py", env={"MIXED_PRECISION": "bf61"})
    assert run.code == 2
    assert "MIXED_PRECISION is wrong: got 'bf61'" in run.stderr


def test_cuda_visible_devices_filters_and_never_demands(tmp_path: Path) -> None:
    run = launch(tmp_path, SHOW, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert len(seen(run)) == 2
    expected = (
        "CUDA_VISIBLE_DEVICES=0,1 names GPUs, but there is no GPU, or no NVIDIA driver: "
        "using the CPU"
    )
    assert run.stderr == f"paceline launch: {expected}\n"
    quiet = launch(tmp_path, SHOW, "--quiet", env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert quiet.stderr == ""


def test_without_a_number_one_process_and_a_hint(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    run = command(tmp_path, "launch", "show.py")
    assert len(seen(run)) == 1
    n = len(cores.available_cores())
    assert (f"--num_processes {n} starts one per core" in run.stderr) == (n > 1)


def test_a_script_that_imports_accelerate_gets_paceline(tmp_path: Path) -> None:
    text = (
        "import sys, json\nfrom accelerate import Accelerator\n"
        "from accelerate.utils import gather_object\naccelerator = Accelerator()\n"
        "accelerator.print(type(accelerator).__module__, gather_object([sys.argv[1]]))\n"
    )
    run = launch(tmp_path, text, "--as-accelerate", args=("a",))
    assert run.code == 0, run.stderr
    assert run.stdout == "paceline.accelerator ['a', 'a']\n"
    (tmp_path / "inner.py").write_text(text)
    run = command(tmp_path, "launch", "-n", "1", "--as_accelerate", "-m", "inner", "b")
    assert run.stdout == "paceline.accelerator ['b']\n", run.stderr
    run = command(tmp_path, "launch", "--as_accelerate", "--no_python", "true")
    assert "--as_accelerate and --no_python contradict" in run.stderr
