# SPDX-License-Identifier: Apache-2.0
"""A job as its launcher sees it: what to start, and the environment that makes a process a rank.

Shared by ``paceline launch`` and ``notebook_launcher``; knows neither.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from .machines import Machines

__all__ = ["PRECISIONS", "Settings", "choose_port", "rank_environment"]

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class Settings:
    """What to start, every source considered.

    Attributes
    ----------
    num_processes : int
        Ranks of this machine.
    mixed_precision : str
        ``"no"``, ``"fp16"`` or ``"bf16"``.
    cpu : bool
        Keep to the CPU.
    threads : int or None
        Threads per rank, None for cores / ranks.
    port : int
        MASTER_PORT.
    gradient_accumulation_steps : int or None
        For the environment of the ranks, None if not said.
    debug : bool
        For the environment of the ranks.
    machines : Machines
        How many machines there are, and which of them this is.
    gpu_ids : str or None
        CUDA_VISIBLE_DEVICES for the ranks, None leaves it.
    max_restarts, restart : int
        How often the job may be started again, and how often it was.
    sources : mapping
        Where a value came from, by the name of the variable that hands it on.
    """

    num_processes: int = 1
    mixed_precision: str = "no"
    cpu: bool = False
    threads: int | None = None
    port: int = 0
    gradient_accumulation_steps: int | None = None
    debug: bool = False
    machines: Machines = field(default_factory=Machines)
    gpu_ids: str | None = None
    max_restarts: int = 0
    restart: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)


def choose_port(asked: int) -> int:
    """Give a port of 127.0.0.1 that is free now: the one asked for, else any.

    Between processes of one machine paceline itself does not use it; a script may.
    """
    for port in dict.fromkeys((asked, 0)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return asked


def rank_environment(
    settings: Settings, local_rank: int, launch_id: str, base: Mapping[str, str]
) -> dict[str, str]:
    """Make the environment of one rank: torchrun's variables, Accelerate's, and the run id.

    Parameters
    ----------
    settings : Settings
        What to start.
    local_rank : int
        Which rank of this machine.
    launch_id : str
        Name of this machine's part of the job: of the whole job where there is one machine.
    base : mapping
        The environment to begin with.

    Returns
    -------
    dict
        Without OMP_NUM_THREADS, which depends on the cores.
    """
    machines, here = settings.machines, settings.num_processes
    rank, world = str(machines.rank * here + local_rank), str(machines.count * here)
    env = dict(base)
    env |= {
        "RANK": rank,
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": str(here),
        "GROUP_RANK": str(machines.rank),
        "GROUP_WORLD_SIZE": str(machines.count),
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world,
        "ROLE_NAME": "default",
        "MASTER_ADDR": machines.address,
        "MASTER_PORT": str(settings.port),
        "TORCHELASTIC_RESTART_COUNT": str(settings.restart),
        "TORCHELASTIC_MAX_RESTARTS": str(settings.max_restarts),
        "PACELINE_LAUNCH_ID": launch_id,
        "PACELINE_RUN_ID": machines.run_id or launch_id,
        "ACCELERATE_MIXED_PRECISION": settings.mixed_precision,
    }
    if machines.count == 1:
        # NCCL's ranks find each other over a socket: nothing outside this machine is to reach it.
        env.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if machines.secret_file:
        env["PACELINE_SECRET_FILE"] = machines.secret_file
    if settings.cpu:
        env["ACCELERATE_USE_CPU"] = "true"
    if settings.gpu_ids is not None:
        env["CUDA_VISIBLE_DEVICES"] = settings.gpu_ids
    if settings.debug:
        env["ACCELERATE_DEBUG_MODE"] = "true"
    if settings.gradient_accumulation_steps is not None:
        env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(settings.gradient_accumulation_steps)
    told = [(name, (env[name], where)) for name, where in settings.sources.items() if name in env]
    env["PACELINE_SETTING_SOURCES"] = json.dumps(told)
    env.setdefault("PYTHONFAULTHANDLER", "1")  # a crash in C then tells where
    return env
