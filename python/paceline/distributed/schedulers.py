# SPDX-License-Identifier: Apache-2.0
"""What SLURM, Open MPI and other MPI launchers say of a process, in torchrun's variables.

Only where torchrun's own are absent. Pure functions of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["first_host", "slurm_machines", "with_scheduler"]

# Rank, world, local rank, local world; and what names the job.
_MPI = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ("PMI_ID", "PMI_FD")),
)
_PORTS = (20000, 8000)  # between machines: first, and how many


def first_host(nodes: str) -> str:
    """Give the first host of SLURM's short form of a list.

    Examples
    --------
    >>> first_host("gpu[07-09,12],login1")
    'gpu07'
    """
    found = re.match(r"([^\[,]+)(?:\[([^\]]+)\])?([^,]*)", nodes)
    if found is None:
        return ""
    head, numbers, tail = found[1], found[2] or "", found[3]
    return head + re.split(r"[,-]", numbers)[0] + tail


def _port(job: str) -> str:
    digits = "".join(character for character in job if character.isdigit()) or "0"
    low, count = _PORTS
    return str(low + int(digits) % count)


def _tasks_here(environ: Mapping[str, str]) -> str:
    """Give how many tasks of the step this node has: SLURM writes ``2(x3),1`` for 2, 2, 2, 1."""
    counts: list[str] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return ""
        counts += [found[1]] * int(found[2] or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else ""


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Read a task that srun started; a batch script itself is none."""
    world = environ.get("SLURM_STEP_NUM_TASKS", "")
    rank, local = environ.get("SLURM_PROCID"), environ.get("SLURM_LOCALID")
    here = _tasks_here(environ)
    if not world.isdigit() or int(world) < 2 or rank is None or local is None or not here:
        return {}
    job = f"{environ.get('SLURM_JOB_ID', '0')}.{environ.get('SLURM_STEP_ID', '0')}"
    found = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": here,
        "PACELINE_RUN_ID": f"slurm-{job}",
    }
    if here != world:
        found["MASTER_ADDR"] = first_host(environ.get("SLURM_STEP_NODELIST", ""))
        found["MASTER_PORT"] = _port(environ.get("SLURM_JOB_ID", "0"))
    return found


def _mpi(environ: Mapping[str, str]) -> dict[str, str]:
    for rank, world, local, local_world, names in _MPI:
        if not environ.get(world, "").isdigit() or int(environ[world]) < 2 or rank not in environ:
            continue
        if local not in environ or local_world not in environ:
            continue
        job = next((environ[name] for name in names if environ.get(name)), "")
        return {
            "RANK": environ[rank],
            "WORLD_SIZE": environ[world],
            "LOCAL_RANK": environ[local],
            "LOCAL_WORLD_SIZE": environ[local_world],
            **({"PACELINE_RUN_ID": f"mpi-{job}"} if job else {}),
        }
    return {}


def with_scheduler(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Add what a scheduler says to an environment that has no WORLD_SIZE.

    Parameters
    ----------
    environ : mapping
        The environment; not changed.

    Returns
    -------
    mapping
        With RANK, WORLD_SIZE and so on where srun or mpirun started this process with others;
        what was set already stays.
    """
    if environ.get("WORLD_SIZE"):
        return environ
    found = _slurm(environ) or _mpi(environ)
    return {**found, **environ} if found else environ


def slurm_machines(environ: Mapping[str, str]) -> tuple[int, int, str, int] | None:
    """Read what SLURM says to a launcher of which srun started one on each machine.

    Returns
    -------
    tuple of int, int, str and int, or None
        Machines, which of them this is, the address of the first, a port; None where there is no
        such step.
    """
    tasks, nodes = environ.get("SLURM_STEP_NUM_TASKS"), environ.get("SLURM_STEP_NUM_NODES")
    if tasks is None or tasks != nodes or not tasks.isdigit() or int(tasks) < 2:
        return None
    host = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    port = int(_port(environ.get("SLURM_JOB_ID", "0")))
    return int(tasks), int(environ.get("SLURM_NODEID", "0")), host, port
