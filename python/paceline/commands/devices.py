# SPDX-License-Identifier: Apache-2.0
"""How many processes, on which devices: what was demanded must be there, the rest is a default.

``--multi_gpu``, ``--gpu_ids`` and ``distributed_type: MULTI_GPU`` demand GPUs;
``CUDA_VISIBLE_DEVICES`` only filters them; ``--cpu`` overrides the file. Nothing here touches the
driver, since the processes to be started use it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from .cores import available_cores

__all__ = ["Demand", "DeviceError", "Devices", "count_gpus", "plan"]


class DeviceError(Exception):
    """What was demanded cannot be had; the text says what, and what to do."""


@dataclass(frozen=True)
class Demand:
    """What was asked for.

    Attributes
    ----------
    num_processes : int or None
        Processes of this machine; None leaves it to what is there.
    cpu : bool
        Keep to the CPU.
    gpus_by : str
        Which setting demands GPUs, empty if none does.
    gpu_ids : str or None
        Which GPUs: ``"all"`` or ``"0,1"``.
    """

    num_processes: int | None
    cpu: bool = False
    gpus_by: str = ""
    gpu_ids: str | None = None


@dataclass(frozen=True)
class Devices:
    """What is to be started.

    Attributes
    ----------
    num_processes : int
        Processes of this machine.
    visible : str or None
        CUDA_VISIBLE_DEVICES for them, None leaves it.
    remark : str
        A line for the user, empty if there is nothing to say.
    """

    num_processes: int
    visible: str | None = None
    remark: str = ""


def count_gpus(environ: Mapping[str, str]) -> tuple[int, str]:
    """Count the GPUs that processes of this environment can use, and say why there are none.

    Parameters
    ----------
    environ : mapping
        The environment; only its ``CUDA_VISIBLE_DEVICES`` counts.

    Returns
    -------
    int
        How many.
    str
        Why not more, where it is 0.
    """
    from paceline import _gpus

    if environ.get("PACELINE_CUDA_LIBRARY") or _gpus.only_the_driver_knows():
        return _asked_elsewhere(environ)
    there = _gpus.installed()
    if not there:
        return 0, "there is no GPU, or no NVIDIA driver"
    if not _is_built() and not _torch_has_cuda():
        return 0, "this build of paceline has no CUDA (docs/build.md)"
    seen = len(_gpus.visible(environ, there))
    return seen, f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')} hides all of them"


def _is_built() -> bool:
    from paceline._cuda_libraries import has_kernels

    return has_kernels()


def _torch_has_cuda() -> bool:
    """Whether scripts may use GPUs through PyTorch; decided without loading it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return False


def _asked_elsewhere(environ: Mapping[str, str]) -> tuple[int, str]:
    """Ask the library in another process, where Linux does not tell: it initialises the driver."""
    code = "from paceline import cuda; print(cuda.device_count())"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return int(asked.stdout), "the driver shows none"
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0, "the driver cannot be asked (paceline env tells more)"


def plan(demand: Demand, environ: Mapping[str, str]) -> Devices:
    """Decide how many processes to start, and what they see.

    Parameters
    ----------
    demand : Demand
        What was asked for.
    environ : mapping
        The environment.

    Returns
    -------
    Devices
        What to start.

    Raises
    ------
    DeviceError
        When GPUs are demanded that are not there, or more processes than there are GPUs.
    """
    if demand.gpus_by and not demand.cpu:
        return _on_gpus(demand, environ)
    asked = demand.num_processes
    if demand.cpu:
        return Devices(asked or 1)
    filtered = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    found, missing = count_gpus(environ)
    if found:
        if asked is not None and asked > found:
            raise DeviceError(
                f"{asked} processes are asked for, but only {found} "
                f"{'GPU' if found == 1 else 'GPUs'} can be seen, and each process needs its own; "
                f"use --num_processes {found}, or --cpu"
            )
        return Devices(asked or found)
    remark = ""
    if filtered not in ("", "-1"):
        remark = f"CUDA_VISIBLE_DEVICES={filtered} names GPUs, but {missing}: using the CPU"
    elif missing.startswith("this build"):
        remark = f"there are GPUs, but {missing}: using the CPU"
    elif asked is None and len(available_cores()) > 1:
        cores = len(available_cores())
        remark = f"1 process with {cores} threads; --num_processes {cores} starts one per core"
    return Devices(asked or 1, remark=remark)


def _on_gpus(demand: Demand, environ: Mapping[str, str]) -> Devices:
    chosen = None if demand.gpu_ids in (None, "all") else str(demand.gpu_ids)
    # Ids are counted among all GPUs of the machine: they take the filter's place.
    seen = environ if chosen is None else {**environ, "CUDA_VISIBLE_DEVICES": chosen}
    usable, missing = count_gpus(seen)
    if usable == 0 and (chosen is None or count_gpus(_without_filter(environ))[0] == 0):
        raise DeviceError(f"{demand.gpus_by} asks for GPUs, but {missing}; use --cpu")
    if chosen is not None and usable < len(chosen.split(",")):
        there = count_gpus(_without_filter(environ))[0]
        raise DeviceError(
            f"{demand.gpus_by} names GPUs {chosen}, but this machine has {there}: 0 to {there - 1}"
        )
    count = demand.num_processes or usable
    if usable < count:
        what = "can be seen" if chosen is None else f"are named by gpu_ids ({chosen})"
        raise DeviceError(f"{demand.gpus_by} asks for {count} GPUs, but only {usable} {what}")
    return Devices(count, chosen)


def _without_filter(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"}
