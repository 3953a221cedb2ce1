# SPDX-License-Identifier: Apache-2.0
"""Which GPUs this machine has, without touching the driver: what Linux shows of it in ``/proc``.

A process that has initialised the driver cannot fork children that use it, so a launcher must not
ask it. Standard library only; knows neither the core nor a tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Gpu", "choose", "driver_version", "installed", "only_the_driver_knows", "visible"]

_PROC = "/proc/driver/nvidia"
_DEV = "/dev/nvidia"


@dataclass(frozen=True)
class Gpu:
    """One GPU: its model, the driver's name of it (``GPU-...``), and its place on the bus."""

    name: str
    uuid: str
    bus: str


def installed(proc: str = _PROC, dev: str = _DEV) -> list[Gpu]:
    """List the GPUs that the driver shows to this process, in the order of the bus.

    Parameters
    ----------
    proc, dev : str
        The driver's folder, and the beginning of the devices' names (for tests).

    Returns
    -------
    list of Gpu
        Empty without a driver, or inside a container that was given none.
    """
    found = []
    try:
        places = sorted(os.listdir(os.path.join(proc, "gpus")))
    except OSError:
        return []
    for place in places:
        fields = _fields(os.path.join(proc, "gpus", place, "information"))
        # A container may see the folder of a GPU whose device it was not given.
        given = os.path.exists(dev + fields.get("Device Minor", ""))
        if given and fields.get("GPU Excluded", "No") != "Yes":
            name = fields.get("Model", "unknown model")
            found.append(Gpu(name, fields.get("GPU UUID", ""), fields.get("Bus Location", place)))
    return found


def _fields(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = (line.partition(":") for line in file)
            return {key.strip(): value.strip() for key, _, value in pairs}
    except OSError:
        return {}


def driver_version(proc: str = _PROC) -> str | None:
    """Give the version of the kernel's NVIDIA driver, such as ``580.159.03``; None without one."""
    try:
        with open(os.path.join(proc, "version"), encoding="utf-8", errors="replace") as file:
            found = re.search(r"Module\D*?(?:for \S+)?\s+(\d+\.\d[\d.]*)", file.readline())
    except OSError:
        return None
    return None if found is None else found[1]


def only_the_driver_knows() -> bool:
    """Tell whether there may be GPUs of which ``/proc`` says nothing: Windows' own, under WSL2."""
    return not os.path.isdir(_PROC) and os.path.exists("/dev/dxg")


# -- CUDA_VISIBLE_DEVICES -------------------------------------------------------------------------


def _leading_number(text: str) -> int | None:
    """Read as C does: digits at the beginning count, what follows them does not."""
    found = re.match(r"\s*([+-]?\d+)", text)
    return None if found is None else int(found[1])


def choose(text: str | None, uuids: list[str]) -> list[int]:
    """Tell which GPUs CUDA shows, and in which order, by the rules of ``CUDA_VISIBLE_DEVICES``.

    Entries are numbers, or beginnings of UUIDs that fit one GPU. The first one that names none
    ends the list, and one that comes twice empties it.

    Parameters
    ----------
    text : str or None
        The variable; None where it is not set, which shows all.
    uuids : list of str
        Of the GPUs that are there.

    Returns
    -------
    list of int
        Indices into `uuids`.

    Examples
    --------
    >>> choose("1,0,7,2", ["GPU-a1", "GPU-b2", "GPU-c3"])
    [1, 0]
    >>> choose("GPU-c", ["GPU-a1", "GPU-b2", "GPU-c3"])
    [2]
    """
    if text is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in text.split(","):
        word = entry.strip()
        if word.startswith("MIG-"):
            # A part of a GPU: CUDA shows a process one of them, whatever else is listed.
            return chosen or ([0] if uuids else [])
        if word.startswith("GPU-"):
            fits = [at for at, uuid in enumerate(uuids) if uuid.startswith(word)]
            at = fits[0] if len(fits) == 1 else None
        else:
            at = _leading_number(word)
        if at is None or not 0 <= at < len(uuids):
            break
        if at in chosen:
            return []
        chosen.append(at)
    return chosen


def visible(environ: Mapping[str, str], gpus: list[Gpu] | None = None) -> list[Gpu]:
    """List the GPUs that CUDA would show under an environment.

    ``CUDA_DEVICE_ORDER`` may give them other numbers; how many there are does not depend on it.
    """
    there = installed() if gpus is None else gpus
    return [
        there[at] for at in choose(environ.get("CUDA_VISIBLE_DEVICES"), [g.uuid for g in there])
    ]
