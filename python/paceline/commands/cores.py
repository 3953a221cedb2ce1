# SPDX-License-Identifier: Apache-2.0
"""Which cores a rank runs on, and how many threads it gets.

Knows nothing of jobs. A core is a physical one: hardware threads of one core stay together in
one rank and count once, since compute-bound loops gain nothing from a second one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Share", "available_cores", "share_out"]


@dataclass(frozen=True)
class Share:
    """One rank's part of the machine.

    Attributes
    ----------
    threads : int
        For OMP_NUM_THREADS.
    cpus : frozenset of int
        Logical processors to pin the rank to; empty means: do not pin.
    """

    threads: int
    cpus: frozenset[int]


def _topology(cpu: int) -> tuple[int, int]:
    """Package and core id of a logical processor; a core of its own where unknown."""
    base = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        with open(f"{base}/physical_package_id") as package, open(f"{base}/core_id") as core:
            return int(package.read()), int(core.read())
    except (OSError, ValueError):
        return 0, cpu


def available_cores() -> list[frozenset[int]]:
    """List the cores that this process may use, each as its set of logical processors.

    Returns
    -------
    list of frozenset of int
        In the order of packages, so that neighbours share caches and memory.
    """
    if hasattr(os, "sched_getaffinity"):
        logical = sorted(os.sched_getaffinity(0))
    else:
        logical = list(range(os.cpu_count() or 1))
    cores: dict[tuple[int, int], set[int]] = {}
    for cpu in logical:
        cores.setdefault(_topology(cpu), set()).add(cpu)
    return [frozenset(cores[key]) for key in sorted(cores)]


def _quota() -> float:
    """Processors that the control group allows (``docker run --cpus``); infinity if unlimited."""
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            with open(path) as file:
                words = file.read().split()
            if len(words) == 1:
                with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                    words += file.read().split()
            if words[0] not in ("max", "-1"):
                return int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return float("inf")


def share_out(num_processes: int, threads: int | None = None, pin: bool = True) -> list[Share]:
    """Divide the cores among the ranks of this machine.

    Parameters
    ----------
    num_processes : int
        Ranks on this machine.
    threads : int, optional
        Threads per rank; None means cores divided by ranks.
    pin : bool
        Whether ranks are bound to disjoint sets of cores where there are enough of them.

    Returns
    -------
    list of Share
        One per rank.
    """
    pin = pin and hasattr(os, "sched_setaffinity")
    cores = available_cores()
    logical = sorted(cpu for core in cores for cpu in core)
    if len(cores) < num_processes <= len(logical):
        cores = [frozenset((cpu,)) for cpu in logical]
    usable = max(1, min(len(cores), int(_quota() + 0.5) if _quota() != float("inf") else 1 << 30))
    count = threads if threads is not None else max(1, usable // num_processes)
    each, extra = divmod(len(cores), num_processes)
    shares = []
    for rank in range(num_processes):
        start = rank * each + min(rank, extra)
        mine = cores[start : start + each + (rank < extra)]
        # One rank owns the machine anyway; more threads than cores were somebody's explicit wish.
        bound = pin and 1 < num_processes <= len(cores) and count <= each
        cpus = frozenset(cpu for core in mine for cpu in core) if bound else frozenset()
        shares.append(Share(count, cpus))
    return shares
