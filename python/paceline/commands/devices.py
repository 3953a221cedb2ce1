# SPDX-License-Identifier: Apache-2.0
"""How many processes, on which devices: what was demanded must be there, the rest is a default.

``--multi_gpu``, ``--gpu_ids`` and ``distributed_type: MULTI_GPU`` demand GPUs;
``CUDA_VISIBLE_DEVICES`` only filters them; ``--cpu`` overrides the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .cores import available_cores

__all__ = ["Demand", "DeviceError", "Devices", "plan"]


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


def _gpus() -> tuple[int, str]:
    """Count the GPUs that can be used, and say why there are none."""
    try:
        from paceline import cuda

        visible = cuda.device_count() if cuda.is_available() else 0
    except Exception as error:
        return 0, f"paceline's core cannot be loaded ({error})"
    return visible, "this build of paceline has no CUDA backend, or there is no GPU"


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
        When GPUs are demanded that are not there.
    """
    if demand.gpus_by and not demand.cpu:
        return _on_gpus(demand)
    filtered = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    asked = demand.num_processes
    if demand.cpu:
        return Devices(asked or 1)
    remark = ""
    found = 0
    if filtered not in ("", "-1") or asked is None:
        found, _ = _gpus()
    if filtered not in ("", "-1") and found == 0:
        remark = f"CUDA_VISIBLE_DEVICES={filtered} names GPUs, but there is none: using the CPU"
    elif asked is None and found == 0 and len(available_cores()) > 1:
        cores = len(available_cores())
        remark = f"1 process with {cores} threads; --num_processes {cores} starts one per core"
    return Devices(asked or found or 1, remark=remark)


def _on_gpus(demand: Demand) -> Devices:
    visible, missing = _gpus()
    if visible == 0:
        raise DeviceError(f"{demand.gpus_by} asks for GPUs, but {missing}; use --cpu")
    chosen = None if demand.gpu_ids in (None, "all") else demand.gpu_ids
    usable = visible if chosen is None else len(str(chosen).split(","))
    count = demand.num_processes or usable
    if usable < count:
        what = "can be seen" if chosen is None else f"are named by gpu_ids ({chosen})"
        raise DeviceError(f"{demand.gpus_by} asks for {count} GPUs, but only {usable} {what}")
    return Devices(count, chosen)
