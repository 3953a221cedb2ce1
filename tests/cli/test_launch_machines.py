# SPDX-License-Identifier: Apache-2.0
"""Several machines on the command line: what the ranks of one are told, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launching import command, environment
from machines import Net
from paceline.distributed.environment import read_job
from paceline.distributed.schedulers import first_host, slurm_machines, with_scheduler

SHOW = "import json, os, sys\nprint('SEEN ' + json.dumps(dict(os.environ)))\n"
FLAGS = ("--num_machines", "2", "--main_process_ip", "10.0.0.1", "--main_process_port", "29600")


def seen(tmp_path: Path, *flags: str, env: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    (tmp_path / "show.py").write_text(SHOW)
    secret = tmp_path / "paceline.secret"
    secret.write_text("s" * 40)
    run = command(
        tmp_path,
        "launch",
        *flags,
        "show.py",
        env={"PACELINE_SECRET_FILE": str(secret), **(env or {})},
    )
    assert run.code == 0, run.stderr
    rows = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("SEEN ")]
    return sorted(rows, key=lambda row: int(row["RANK"]))


@pytest.mark.parametrize(
    "flags",
    [
        (*FLAGS, "--num_processes", "4"),
        (*FLAGS, "--nproc_per_node", "2"),
        ("--nnodes=2", "--nproc_per_node=2", "--master_addr=10.0.0.1", "--master_port=29600"),
    ],
)
def test_what_the_ranks_of_each_machine_are_told(tmp_path: Path, flags: tuple[str, ...]) -> None:
    names = []
    for machine in (0, 1):
        rows = seen(tmp_path, *flags, "--machine_rank", str(machine))
        assert [row["RANK"] for row in rows] == [str(2 * machine), str(2 * machine + 1)]
        assert [row["LOCAL_RANK"] for row in rows] == ["0", "1"]
        for row in rows:
            assert (row["WORLD_SIZE"], row["LOCAL_WORLD_SIZE"]) == ("4", "2")
            assert (row["GROUP_RANK"], row["GROUP_WORLD_SIZE"]) == (str(machine), "2")
            assert (row["MASTER_ADDR"], row["MASTER_PORT"]) == ("10.0.0.1", "29600")
            assert row["PACELINE_SECRET_FILE"] == str(tmp_path / "paceline.secret")
            assert "NCCL_SOCKET_IFNAME" not in row
            assert "s" * 32 not in " ".join(v for k, v in row.items() if k != "PWD")
        names.append({row["PACELINE_RUN_ID"] for row in rows})
        assert {row["PACELINE_LAUNCH_ID"] for row in rows} != names[-1]
    assert names[0] == names[1], "both machines find the same name for the job"
    assert len(names[0]) == 1


def test_the_secret_lies_beside_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "my.yaml").write_text(
        "num_machines: 2\nmachine_rank: 1\nmain_process_ip: 10.0.0.1\nnum_processes: 2\n"
    )
    words = ("launch", "--config_file", str(folder / "my.yaml"), "show.py")
    run = command(tmp_path, *words)
    assert run.code == 2
    assert f"there is no paceline.secret in {folder}" in run.stderr
    assert "`paceline config` makes one beside its file" in run.stderr
    (folder / "paceline.secret").write_text("s" * 40)
    run = command(tmp_path, *words)
    assert run.code == 0, run.stderr
    row = json.loads(run.stdout.removeprefix("SEEN "))
    assert (row["RANK"], row["MASTER_PORT"]) == ("1", "29500")
    assert row["PACELINE_SECRET_FILE"] == str(folder / "paceline.secret")


def test_messages_name_the_rank_of_the_whole_job(tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("raise SystemExit(7)")
    secret = tmp_path / "paceline.secret"
    secret.write_text("s" * 40)
    run = command(
        tmp_path,
        *("launch", *FLAGS, "--machine_rank", "1", "--num_processes", "4", "fail.py"),
        env={"PACELINE_SECRET_FILE": str(secret)},
    )
    assert run.code == 7
    assert re.search(r"rank [23] \(pid \d+\) ended with exit code 7", run.stderr)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_machines", "2"), "2 machines, but where is the first? add --main_process_ip"),
        ((*FLAGS, "--machine_rank", "2"), "machine_rank is wrong: got 2, expected 0 to 1"),
        (("--machine_rank", "1"), "machine_rank is wrong: got 1, expected 0 of 1 machine"),
        ((*FLAGS, "-n", "3"), "got 3 over 2 machines, expected a multiple"),
        ((*FLAGS[:-1], "65535"), "got 65535, expected room for one above it"),
        (FLAGS, "missing cannot be read: No such file or directory"),
    ],
)
def test_refusals(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    (tmp_path / "train.py").write_text("print('STARTED')")
    (tmp_path / "secret").write_text("s" * 40)
    named = "missing" if "cannot be read" in message else "secret"
    env = {"PACELINE_SECRET_FILE": str(tmp_path / named)}
    run = command(tmp_path, "launch", *flags, "train.py", env=env)
    assert run.code == 2
    assert message in run.stderr
    assert "STARTED" not in run.stdout


def test_two_machines_with_addresses_of_their_own_train_together(tmp_path: Path) -> None:
    with Net((2, 1)) as net:
        words = ["--num_machines", "2", "--main_process_ip", net.address(0)]
        runs = [
            subprocess.Popen(
                [
                    *net.prefix_of(2 * machine),
                    *(sys.executable, "-m", "paceline.commands", "test", *words),
                    *("--machine_rank", str(machine), "--num_processes", "2"),
                ],
                env=environment(tmp_path.name, {"PACELINE_SECRET_FILE": str(net.secret)}),
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for machine in (0, 1)
        ]
        for run in runs:
            out, err = run.communicate(timeout=100)
            assert run.returncode == 0, err
            assert "Test is a success!" in out
            assert "ok: 2 of 2 processes take part" in out


# --- schedulers -----------------------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
}


def test_tasks_of_srun() -> None:
    env = SLURM | {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }
    job = read_job(env)
    assert (job.rank, job.world, job.local_rank, job.local_world) == (3, 4, 1, 2)
    assert (job.master_addr, job.master_port) == ("gpu07", 20000 + 123456 % 8000)
    assert job.run_id == "slurm-123456.0"
    assert read_job({**env, "WORLD_SIZE": "1"}).world == 1, "torchrun's variables win"
    batch = {k: v for k, v in env.items() if not k.startswith("SLURM_STEP")}
    assert read_job({**batch, "SLURM_NTASKS": "4"}).world == 1, "a batch script is no task"


def test_one_launcher_on_each_machine_of_srun(tmp_path: Path) -> None:
    env = SLURM | {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    assert slurm_machines(env) == (2, 1, "gpu07", 20000 + 123456 % 8000)
    rows = seen(tmp_path, "--nproc_per_node=2", env=env)
    assert [row["RANK"] for row in rows] == ["2", "3"]
    assert [(row["WORLD_SIZE"], row["MASTER_ADDR"]) for row in rows] == [("4", "gpu07")] * 2
    assert slurm_machines({**env, "SLURM_STEP_NUM_TASKS": "8"}) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("a[1,3]-ib,b", "a1-ib"),
        ("", ""),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_processes_of_mpirun() -> None:
    open_mpi = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": "prterun-host-4@1",
    }
    job = read_job(open_mpi)
    assert (job.rank, job.world, job.local_rank, job.local_world) == (1, 2, 1, 2)
    assert job.run_id == "mpi-prterun-host-4@1"
    hydra = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert read_job({**hydra, "MASTER_PORT": "5"}).rank == 1
    alone = {**open_mpi, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    assert with_scheduler(alone) is alone
