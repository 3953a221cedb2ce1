# SPDX-License-Identifier: Apache-2.0
"""The default group, further groups and what is known of them, with PyTorch's names.

The collectives are in ``collectives.py`` and ``messages.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from paceline.distributed import lifecycle
from paceline.distributed.environment import Job, read_job
from paceline.distributed.process_group import DEFAULT_TIMEOUT, ProcessGroup
from paceline.errors import DeviceError

_BACKENDS = (None, "shm", "gloo", "cpu:gloo")  # gloo: what scripts say when they mean the CPU
_WITH_GPU = ("nccl", "cuda:nccl", "cpu:gloo,cuda:nccl")


class GroupMember:
    """PyTorch's name for what `new_group` gives to a process that is not in the group."""

    NON_GROUP_MEMBER: Any = type("_NonMember", (), {"__repr__": lambda self: "NON_GROUP_MEMBER"})()


_default: ProcessGroup | None = None
_needs_gpu = False  # whether the default group was asked for by the name of NCCL
_new_groups = 0  # made so far by new_group; the same on all ranks


def default_group() -> ProcessGroup:
    """Return the group that `init_process_group` made.

    Raises
    ------
    ValueError
        It was not called, or the group was destroyed.
    """
    if _default is None:
        raise ValueError(
            "Default process group has not been initialized, please make sure to call "
            "init_process_group."
        )
    return _default


def group_or_default(group: ProcessGroup | None) -> ProcessGroup:
    """Return `group`, or the default one for None."""
    if group is None:
        return default_group()
    if group is GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not a member of the group")
    return group


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | float | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: None = None,
    group_name: str = "",
    pg_options: None = None,
    device_id: Any = None,
    *,
    init_timeout: float | None = None,
    strict_call_sites: bool = False,
) -> None:
    """Form the default process group; every rank of the job calls this.

    Parameters
    ----------
    backend : str, optional
        ``"shm"``, which is the default; ``"gloo"`` means the same. Tensors on a GPU go through NCCL
        in any group; ``"nccl"`` or ``"cpu:gloo,cuda:nccl"`` says that there must be one.
    init_method : str, optional
        ``"env://"``, or ``"tcp://address:port"`` with `rank` and `world_size`.
    timeout : timedelta or float, optional
        How long a collective may take; 600 s by default.
    world_size, rank : int
        In place of WORLD_SIZE and RANK.
    store, pg_options, device_id
        Must be None; in PyTorch's place.
    group_name : str
        Tells groups apart.
    init_timeout : float, optional
        Seconds to wait for the other ranks; PACELINE_INIT_TIMEOUT or 300 by default.
    strict_call_sites : bool
        Whether ranks that make the same call at different lines are an error, not a warning.

    Raises
    ------
    ValueError
        It was called before, or an argument cannot be used.
    NotImplementedError
        A backend that comes in a later version.
    DeviceError
        `backend` names NCCL, and this process has no GPU.
    RendezvousError
        The ranks did not come together.

    Examples
    --------
    >>> import paceline.distributed as dist
    >>> dist.init_process_group()
    >>> dist.get_world_size()
    1
    >>> dist.destroy_process_group()
    """
    global _default, _needs_gpu
    if _default is not None and lifecycle.is_own(_default):  # a forked child may make its own
        raise ValueError("trying to initialize the default process group twice!")
    if backend not in _BACKENDS + _WITH_GPU:
        raise NotImplementedError(
            f"[init_process_group] this backend comes in a later version: got {backend!r}, "
            "expected None, 'shm', 'gloo' or 'nccl'"
        )
    if backend in _WITH_GPU:
        _check_gpu(backend)
    if store is not None or pg_options is not None:
        raise NotImplementedError("[init_process_group] store and pg_options must be None")
    _default = ProcessGroup(
        group_name or "default",
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        init_timeout=init_timeout,
        strict_call_sites=strict_call_sites,
        job=_job(init_method, world_size, rank),
    )
    _needs_gpu = backend in _WITH_GPU


def _check_gpu(backend: str | None) -> None:
    from paceline import cuda  # not where it is not asked for

    if not cuda.is_available():
        raise DeviceError(
            f"[init_process_group] there is no GPU for NCCL: got backend {backend!r}, expected "
            "'shm' or none (`paceline env` says what is missing)"
        )


def _job(init_method: str | None, world_size: int, rank: int) -> Job:
    address = None
    if init_method not in (None, "env://"):
        host, _, port = init_method.removeprefix("tcp://").rpartition(":")
        if not init_method.startswith("tcp://") or not host or not port.isdigit():
            raise ValueError(
                f"[init_process_group] init_method cannot be used: got {init_method!r}, "
                "expected 'env://' or 'tcp://address:port'"
            )
        address = (host, int(port))
    return read_job(
        rank=None if rank < 0 else rank,
        world=None if world_size < 0 else world_size,
        address=address,
    )


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """Leave `group`, or every group; peers that still wait for this rank get an error."""
    global _default, _new_groups
    if group is not None and group is not _default:
        group_or_default(group).close()
        return
    for each in reversed(lifecycle.alive()):
        each.close()
    _default, _new_groups = None, 0


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    *,
    init_timeout: float | None = None,
) -> ProcessGroup:
    """Form a further group of some ranks; every rank of the job calls this, members or not.

    Returns
    -------
    ProcessGroup
        On a rank that is not a member ``GroupMember.NON_GROUP_MEMBER``.
    """
    global _new_groups
    parent = default_group()
    members = sorted(parent.ranks if ranks is None else set(ranks))
    for rank in members:
        parent.group_rank("new_group", rank)
    if not members:
        raise ValueError("[new_group] a group needs at least one rank")
    _new_groups += 1
    if parent.rank not in members:
        none: ProcessGroup = GroupMember.NON_GROUP_MEMBER
        return none
    return ProcessGroup(
        f"group {_new_groups}",
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        init_timeout=init_timeout,
        job=parent.part(members),
        ranks=members,
    )


# -- what is known without asking anybody -----------------------------------------------------


def is_available() -> bool:
    """Whether this package can form process groups: always."""
    return True


def is_initialized() -> bool:
    """Whether the default process group exists."""
    return _default is not None


def is_torchelastic_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def get_rank(group: ProcessGroup | None = None) -> int:
    """Return this process's rank in the group, -1 if it is not a member."""
    return -1 if group is GroupMember.NON_GROUP_MEMBER else group_or_default(group).rank


def get_world_size(group: ProcessGroup | None = None) -> int:
    """Return the number of ranks in the group, -1 if this process is not a member."""
    return -1 if group is GroupMember.NON_GROUP_MEMBER else group_or_default(group).world_size


def get_backend(group: ProcessGroup | None = None) -> str:
    """Return ``"shm"``, or ``"shm+tcp"`` over several machines; ``"nccl"`` where that was asked."""
    if _needs_gpu and group_or_default(group) is _default:
        return "nccl"
    return "shm" if len(group_or_default(group).machines) == 1 else "shm+tcp"


def get_process_group_ranks(group: ProcessGroup | None = None) -> list[int]:
    """Return the ranks of the job that are in the group."""
    return list(group_or_default(group).ranks)


def get_global_rank(group: ProcessGroup, group_rank: int) -> int:
    """Return the rank in the job of a member of `group`."""
    return group.ranks[group_rank]


def get_group_rank(group: ProcessGroup, global_rank: int) -> int:
    """Return the rank in `group` of a rank of the job."""
    return group.group_rank("get_group_rank", global_rank)
