# SPDX-License-Identifier: Apache-2.0
"""The functions of ``torch.distributed``, with its names, argument order and defaults.

They act on the default group unless given another one. Where PyTorch would hang, these raise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from paceline.distributed import lifecycle
from paceline.distributed.buffers import Buffer, contiguous, copy_into, empty_stack, stack
from paceline.distributed.environment import Job, read_job
from paceline.distributed.process_group import DEFAULT_TIMEOUT, ProcessGroup, ReduceOp, Work

_BACKENDS = (None, "shm", "gloo", "cpu:gloo")  # gloo: what scripts say when they mean the CPU


class GroupMember:
    """PyTorch's name for what `new_group` gives to a process that is not in the group."""

    NON_GROUP_MEMBER: Any = type("_NonMember", (), {"__repr__": lambda self: "NON_GROUP_MEMBER"})()


_default: ProcessGroup | None = None
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


def _group(group: ProcessGroup | None) -> ProcessGroup:
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
        ``"shm"``, which is the default; ``"gloo"`` means the same.
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
        A backend or a job over several machines, which come in a later version.
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
    global _default
    if _default is not None and lifecycle.is_own(_default):  # a forked child may make its own
        raise ValueError("trying to initialize the default process group twice!")
    if backend not in _BACKENDS:
        raise NotImplementedError(
            f"[init_process_group] this backend comes in a later version: got {backend!r}, "
            "expected None, 'shm' or 'gloo'"
        )
    if store is not None or pg_options is not None:
        raise NotImplementedError("[init_process_group] store and pg_options must be None")
    _default = ProcessGroup(
        group_name or "default",
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        init_timeout=init_timeout,
        strict_call_sites=strict_call_sites,
        job=_job(init_method, world_size, rank),
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
        _group(group).close()
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
    # The default group's job id makes the name of this rendezvous one that no other job can have.
    job = replace(
        read_job(rank=members.index(parent.rank), world=len(members)), run_id=parent.job_id
    )
    return ProcessGroup(
        f"group {_new_groups}",
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        init_timeout=init_timeout,
        job=job,
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
    return -1 if group is GroupMember.NON_GROUP_MEMBER else _group(group).rank


def get_world_size(group: ProcessGroup | None = None) -> int:
    """Return the number of ranks in the group, -1 if this process is not a member."""
    return -1 if group is GroupMember.NON_GROUP_MEMBER else _group(group).world_size


def get_backend(group: ProcessGroup | None = None) -> str:
    """Return ``"shm"``: shared memory, the only transport so far."""
    _group(group)
    return "shm"


def get_process_group_ranks(group: ProcessGroup | None = None) -> list[int]:
    """Return the ranks of the job that are in the group."""
    return list(_group(group).ranks)


def get_global_rank(group: ProcessGroup, group_rank: int) -> int:
    """Return the rank in the job of a member of `group`."""
    return group.ranks[group_rank]


def get_group_rank(group: ProcessGroup, global_rank: int) -> int:
    """Return the rank in `group` of a rank of the job."""
    return group.group_rank("get_group_rank", global_rank)


# -- collectives ------------------------------------------------------------------------------


def _done(async_op: bool) -> Work | None:
    # Only all_reduce is queued; the others are complete when they return, handle or not.
    return Work(None, None, None) if async_op else None


def all_reduce(
    tensor: Buffer,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `tensor` over all ranks, in place. See ``ProcessGroup.all_reduce``."""
    return _group(group).all_reduce(tensor, op, async_op, depth=1)


def reduce(
    tensor: Buffer,
    dst: int,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `tensor` over all ranks; only rank `dst` gets the result."""
    _group(group).reduce(tensor, dst, op, depth=1)
    return _done(async_op)


def reduce_scatter(
    output: Buffer,
    input_list: Sequence[Buffer],
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `input_list[r]` over all ranks into `output` of rank r."""
    target = _group(group)
    _check_list("reduce_scatter", input_list, target)
    target.reduce_scatter(output, stack("reduce_scatter", list(input_list)), op, depth=1)
    return _done(async_op)


def reduce_scatter_tensor(
    output: Buffer,
    input: Buffer,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `input` over all ranks; `output` is this rank's part of it."""
    _group(group).reduce_scatter(output, input, op, depth=1)
    return _done(async_op)


def all_gather(
    tensor_list: Sequence[Buffer],
    tensor: Buffer,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Put rank r's `tensor` into `tensor_list[r]`, on every rank."""
    source = _group(group)
    _check_list("all_gather", tensor_list, source)
    packed, _ = contiguous("all_gather", tensor)
    received = empty_stack("all_gather", source.world_size, packed)
    source.all_gather(received, packed, depth=1)
    for rank, target in enumerate(tensor_list):
        copy_into(target, received[rank])
    return _done(async_op)


def all_gather_into_tensor(
    output_tensor: Buffer,
    input_tensor: Buffer,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Put every rank's `input_tensor` into `output_tensor`, one after another."""
    _group(group).all_gather(output_tensor, input_tensor, depth=1)
    return _done(async_op)


def broadcast(
    tensor: Buffer,
    src: int,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Copy `tensor` from rank `src` to all ranks, in place."""
    _group(group).broadcast(tensor, src, depth=1)
    return _done(async_op)


def barrier(
    group: ProcessGroup | None = None,
    async_op: bool = False,
    device_ids: Sequence[int] | None = None,
) -> Work | None:
    """Wait until every rank is here; names who is missing when the timeout passes."""
    _group(group).barrier(depth=1)
    return _done(async_op)


def send(tensor: Buffer, dst: int, group: ProcessGroup | None = None, tag: int = 0) -> None:
    """Send to rank `dst`, which calls `recv` with the same tag.

    Messages between two ranks arrive in the order of sending; a `recv` that asks for another tag,
    dtype or size than the next message has raises on both ranks.
    """
    _check_tag("send", tag)
    _group(group).send(tensor, dst, tag, depth=1)


def recv(tensor: Buffer, src: int, group: ProcessGroup | None = None, tag: int = 0) -> int:
    """Receive what rank `src` sends; gives the sender's rank."""
    _check_tag("recv", tag)
    _group(group).recv(tensor, src, tag, depth=1)
    return src


def _check_tag(op: str, tag: int) -> None:
    if tag < 0:
        raise ValueError(f"[{op}] tag must not be negative: got {tag}")


def _check_list(op: str, items: Sequence[Buffer], group: ProcessGroup) -> None:
    if len(items) != group.world_size:
        raise ValueError(
            f"[{op}] one tensor per rank is needed: got {len(items)}, expected {group.world_size}"
        )


# -- collectives of Python objects ------------------------------------------------------------


def all_gather_object(object_list: list[Any], obj: Any, group: ProcessGroup | None = None) -> None:
    """Fill `object_list` with all ranks' objects. See ``ProcessGroup.all_gather_object``."""
    source = _group(group)
    _check_list("all_gather_object", object_list, source)
    object_list[:] = source.all_gather_object(obj, depth=1)


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int = 0,
    group: ProcessGroup | None = None,
) -> None:
    """Fill `object_gather_list` of rank `dst` with all ranks' objects."""
    source = _group(group)
    if source.ranks[source.rank] == dst:
        if object_gather_list is None:
            raise ValueError("[gather_object] object_gather_list is needed on rank dst: got None")
        _check_list("gather_object", object_gather_list, source)
    gathered = source.gather_object(obj, dst, depth=1)
    if gathered is not None and object_gather_list is not None:
        object_gather_list[:] = gathered


def broadcast_object_list(
    object_list: list[Any],
    src: int = 0,
    group: ProcessGroup | None = None,
    device: Any = None,
) -> None:
    """Replace the items of `object_list` by those of rank `src`."""
    _group(group).broadcast_object_list(object_list, src, depth=1)
