# SPDX-License-Identifier: Apache-2.0
"""Several machines: how many, which one this is, where the first is, and the secret they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Machines", "MachinesError", "SECRET", "choose"]

SECRET = "paceline.secret"
_VARIABLE = "PACELINE_SECRET_FILE"
_DEFAULT_PORT = 29500


class MachinesError(Exception):
    """What was said of the machines cannot be; the text says what, and what to do."""


@dataclass(frozen=True)
class Machines:
    """The machines of a job, and this one among them.

    Attributes
    ----------
    count, rank : int
        How many, and which of them this is.
    address : str
        Of machine 0, as the others reach it.
    port : int
        MASTER_PORT; 0 on one machine means any.
    secret_file : str
        What they know each other by; empty on one machine.
    run_id : str
        The name of the job that all machines find by themselves; empty on one machine.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    secret_file: str = ""
    run_id: str = ""


def choose(
    pick: Callable[..., Any],
    said: Mapping[str, Any],
    folders: Sequence[str],
    environ: Mapping[str, str],
) -> Machines:
    """Put together what command line, file and scheduler say of the machines.

    Parameters
    ----------
    pick : callable
        Gives a setting by name, from the command line's value and a default.
    said : mapping
        What the command line says: ``num_machines machine_rank main_process_ip
        main_process_port``.
    folders : sequence of str
        Where the secret may lie.
    environ : mapping
        The environment.

    Returns
    -------
    Machines
        What holds.

    Raises
    ------
    MachinesError
        Something is missing, contradicts another thing, or cannot be read.
    """
    count, rank, address, port = 1, 0, "", 0
    if "SLURM_STEP_NUM_NODES" in environ:
        from paceline.distributed.schedulers import slurm_machines

        count, rank, address, port = slurm_machines(environ) or (1, 0, "", 0)
    count = pick("num_machines", said["num_machines"], count)
    rank = pick("machine_rank", said["machine_rank"], rank)
    port = pick("main_process_port", said["main_process_port"], port)
    if count == 1:
        if rank:
            raise MachinesError(f"machine_rank is wrong: got {rank}, expected 0 of 1 machine")
        return Machines(port=port)
    address = pick("main_process_ip", said["main_process_ip"], address)
    if rank >= count:
        raise MachinesError(
            f"machine_rank is wrong: got {rank}, expected 0 to {count - 1} of {count} machines"
        )
    if not address:
        raise MachinesError(
            f"{count} machines, but where is the first? add --main_process_ip ADDRESS"
        )
    if port == 65535:
        raise MachinesError("main_process_port is wrong: got 65535, expected room for one above it")
    port, secret = port or _DEFAULT_PORT, _secret(folders, environ)
    return Machines(count, rank, address, port, secret, _run_id(address, port, secret))


def _secret(folders: Sequence[str], environ: Mapping[str, str]) -> str:
    named = environ.get(_VARIABLE)
    if named:
        return named
    for folder in folders:
        path = os.path.join(os.path.abspath(folder), SECRET)
        if os.path.isfile(path):
            return path
    raise MachinesError(
        f"several machines need a shared secret: there is no {SECRET} in "
        f"{' or '.join(dict.fromkeys(os.path.abspath(folder) for folder in folders))}; "
        "`paceline config` makes one beside its file, to be copied to every machine, or name a "
        f"file by {_VARIABLE}"
    )


def _run_id(address: str, port: int, secret_file: str) -> str:
    import hashlib  # at every start of a launcher it would cost, and one machine does without

    try:
        with open(secret_file, "rb") as file:
            secret = file.read(4096).strip()
    except OSError as error:
        raise MachinesError(f"{secret_file} cannot be read: {error.strerror}") from None
    # Only its hash is in the environment of the ranks, mixed with what is no secret.
    named = b"%s:%d:run id" % (address.encode(), port)
    return hashlib.sha256(hashlib.sha256(secret).digest() + named).hexdigest()[:32]
