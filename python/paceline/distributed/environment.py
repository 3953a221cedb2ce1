# SPDX-License-Identifier: Apache-2.0
"""Who this process is in its job, read from the environment in this one place.

The variables are torchrun's (RANK, WORLD_SIZE, ...), so every launcher that sets those works;
srun's and mpirun's are understood where they are absent. The environment is only read here, never
written.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from paceline.distributed.schedulers import with_scheduler
from paceline.errors import ConfigError

_HINT = "start the script with `paceline launch` or torchrun, which set it"


@dataclass(frozen=True)
class Job:
    """The place of one process in its job.

    Attributes
    ----------
    rank, world : int
        This process's number and how many there are.
    local_rank, local_world : int
        The same among the processes of this machine.
    master_addr : str
        Where rank 0 runs.
    master_port : int
        A number that tells apart jobs on one machine; 0 where the run id does.
    port : int
        Port of paceline's own listener between machines: MASTER_PORT itself belongs to torchrun.
    run_id : str
        Name of the job, given by its launcher; may be empty.
    restart : int
        How often the launcher has restarted the job.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    port: int = 0
    run_id: str = ""
    restart: int = 0

    @property
    def where(self) -> str:
        """Address and port as one reads them in a message."""
        return f"{self.master_addr}:{self.master_port}" if self.master_port else self.run_id


def _integer(environ: Mapping[str, str], name: str, default: int | None, low: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        if default is None:
            raise ConfigError(f"[init_process_group] {name} is not set: {_HINT}")
        return default
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise ConfigError(
            f"[init_process_group] {name} cannot be used: got {text!r}, "
            f"expected an integer of at least {low}"
        )
    return value


def read_job(
    environ: Mapping[str, str] | None = None,
    *,
    rank: int | None = None,
    world: int | None = None,
    address: tuple[str, int] | None = None,
) -> Job:
    """Read this process's place in the job; without WORLD_SIZE it is a job of one.

    Parameters
    ----------
    environ : mapping, optional
        In place of the process environment.
    rank, world : int, optional
        In place of RANK and WORLD_SIZE.
    address : tuple of str and int, optional
        In place of MASTER_ADDR and MASTER_PORT.

    Raises
    ------
    ConfigError
        A variable is missing, is not a number or contradicts another one.
    """
    env = with_scheduler(os.environ if environ is None else environ)
    if world is None:
        world = _integer(env, "WORLD_SIZE", 1, 1)
    elif str(world) != env.get("WORLD_SIZE"):
        # Another job than the launcher's: its places on this machine say nothing about this one.
        env = {k: v for k, v in env.items() if k not in ("LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if rank is None:
        rank = _integer(env, "RANK", 0 if world == 1 else None, 0)
    if not 0 <= rank < world:
        raise ConfigError(
            f"[init_process_group] rank is outside the world: got RANK={rank} with "
            f"WORLD_SIZE={world}, expected 0 to {world - 1}"
        )
    run_id = env.get("PACELINE_RUN_ID") or env.get("TORCHELASTIC_RUN_ID") or ""
    if address is not None:
        master_addr, master_port = address
    else:
        master_addr = env.get("MASTER_ADDR") or "127.0.0.1"
        needed = world > 1 and not run_id
        master_port = _integer(env, "MASTER_PORT", None if needed else 0, 0)
    if master_port > 65535:
        raise ConfigError(
            f"[init_process_group] MASTER_PORT cannot be used: got {master_port}, "
            "expected at most 65535"
        )
    return Job(
        rank=rank,
        world=world,
        local_rank=_integer(env, "LOCAL_RANK", rank, 0),
        local_world=_integer(env, "LOCAL_WORLD_SIZE", world, 1),
        master_addr=master_addr,
        master_port=master_port,
        port=_integer(env, "PACELINE_PORT", master_port + 1 if master_port else 0, 0),
        run_id=run_id,
        restart=_integer(env, "TORCHELASTIC_RESTART_COUNT", 0, 0),
    )


def init_timeout_s(given: float | None, environ: Mapping[str, str] | None = None) -> float:
    """How long to wait for the other ranks: argument, else PACELINE_INIT_TIMEOUT, else 300 s."""
    if given is not None:
        text: object = given
        value = float(given)
    else:
        env = os.environ if environ is None else environ
        text = env.get("PACELINE_INIT_TIMEOUT") or "300"
        try:
            value = float(str(text))
        except ValueError:
            value = -1.0
    if not value > 0.0:
        raise ConfigError(
            f"[init_process_group] init_timeout cannot be used: got {text!r}, "
            "expected a number of seconds above 0"
        )
    return value


_PATIENCE = (
    ("PACELINE_REPORT_AFTER", 30.0),
    ("PACELINE_SUSPECT_AFTER", 5.0),
    ("PACELINE_FROZEN_AFTER", 30.0),
    ("PACELINE_LINK_TIMEOUT", 3.0),
)


def patience_ms(environ: Mapping[str, str] | None = None) -> list[int]:
    """Read after how long waiting ranks are reported, and frozen ones suspected and given up.

    Returns
    -------
    list of int
        Milliseconds: PACELINE_REPORT_AFTER (30 s), PACELINE_SUSPECT_AFTER (5 s) and
        PACELINE_FROZEN_AFTER (30 s); 0 is never. Then after how long without an acknowledgement a
        link between machines is cut: PACELINE_LINK_TIMEOUT (3 s); 0 is the system's own limit.
    """
    env = os.environ if environ is None else environ
    found = []
    for name, default in _PATIENCE:
        text = env.get(name, "").strip()
        try:
            value = float(text) if text else default
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1e6:
            raise ConfigError(
                f"[init_process_group] {name} cannot be used: got {text!r}, expected a number of "
                "seconds, 0 for never"
            )
        found.append(round(value * 1000))
    return found


def check_machines(job: Job) -> None:
    """Refuse numbers that do not fit together, before anyone waits.

    Raises
    ------
    ConfigError
        The ranks of this machine do not follow one another inside the world; there is no port to
        meet at; or this is to be the only machine, and MASTER_ADDR is another one.
    """
    if job.local_world == job.world:
        if not _is_local(job.master_addr):
            raise ConfigError(
                f"[init_process_group] MASTER_ADDR is another machine: got {job.master_addr}, "
                f"expected an address of this one ({_host()}), since all {job.world} ranks are "
                "here; with several machines LOCAL_WORLD_SIZE says how many ranks each has"
            )
        return
    first = job.rank - job.local_rank
    inside = 0 <= first and first + job.local_world <= job.world
    if not inside or job.local_rank >= job.local_world:
        raise ConfigError(
            "[init_process_group] the ranks of a machine must follow one another: got "
            f"RANK={job.rank}, LOCAL_RANK={job.local_rank} of LOCAL_WORLD_SIZE={job.local_world} "
            f"with WORLD_SIZE={job.world}"
        )
    if job.port == 0:
        raise ConfigError(
            "[init_process_group] several machines need a port to meet at: set MASTER_PORT (the "
            "port is one above it) or PACELINE_PORT, the same on all of them"
        )


def _host() -> str:
    return socket.gethostname()


def _is_local(address: str) -> bool:
    if address in ("127.0.0.1", "localhost", "::1", _host(), _host().split(".")[0]):
        return True
    try:
        infos = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_can_bind(family, where) for family, _, _, _, where in infos)


def _can_bind(family: int, where: object) -> bool:
    # The kernel lets one bind to exactly the addresses that this machine has.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(where)  # type: ignore[arg-type]
        except OSError:
            return False
    return True
