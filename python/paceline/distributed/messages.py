# SPDX-License-Identifier: Apache-2.0
"""Messages between two ranks, and collectives of Python objects, with PyTorch's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paceline.distributed.buffers import Buffer
from paceline.distributed.collectives import root_of
from paceline.distributed.functions import group_or_default
from paceline.distributed.process_group import ProcessGroup, Work


def send(
    tensor: Buffer,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send to rank `dst`, which calls `recv` with the same tag.

    Messages between two ranks arrive in the order of sending; a `recv` that asks for another tag,
    dtype or shape than the next message has raises on both ranks.
    """
    _check_tag("send", tag)
    target = group_or_default(group)
    target.send(tensor, _peer("send", "dst", dst, target, group_dst), tag, depth=1)


def recv(
    tensor: Buffer,
    src: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Receive what rank `src` sends; gives the sender's rank."""
    _check_tag("recv", tag)
    source = group_or_default(group)
    src = _peer("recv", "src", src, source, group_src)
    source.recv(tensor, src, tag, depth=1)
    return src


def _check_tag(op: str, tag: int) -> None:
    if tag < 0:
        raise ValueError(f"[{op}] tag must not be negative: got {tag}")


def _peer(op: str, name: str, rank: int | None, group: ProcessGroup, of_group: int | None) -> int:
    if rank is None and of_group is None:
        raise ValueError(f"[{op}] {name} is needed: messages from any rank are not supported")
    return root_of(op, name, rank, group, of_group)


def isend(
    tensor: Buffer, dst: int | None = None, group: ProcessGroup | None = None, tag: int = 0
) -> Work:
    """Stand for a send in a `P2POp`; alone it is not built yet: use `batch_isend_irecv`."""
    raise not_alone("isend")


def irecv(
    tensor: Buffer, src: int | None = None, group: ProcessGroup | None = None, tag: int = 0
) -> Work:
    """Stand for a receive in a `P2POp`; alone it is not built yet: use `batch_isend_irecv`."""
    raise not_alone("irecv")


def not_alone(op: str) -> NotImplementedError:
    """Make the error of a message that runs in the background."""
    return NotImplementedError(
        f"[{op}] a message in the background comes in a later version: use send and recv, or "
        "batch_isend_irecv"
    )


@dataclass(frozen=True)
class P2POp:
    """One message of `batch_isend_irecv`.

    Parameters
    ----------
    op : callable
        ``isend`` or ``irecv``.
    tensor : Tensor or buffer
        What is sent, or where it goes.
    peer : int
        The other rank.
    group : ProcessGroup, optional
        The default group by default.
    tag : int
        Must be the same on both ranks.
    """

    op: Callable[..., Work]
    tensor: Buffer
    peer: int
    group: ProcessGroup | None = None
    tag: int = 0

    def __post_init__(self) -> None:
        if self.op not in (isend, irecv):
            raise ValueError(f"[P2POp] op must be isend or irecv: got {self.op!r}")
        _check_tag("P2POp", self.tag)


def batch_isend_irecv(p2p_op_list: list[P2POp]) -> list[Work]:
    """Send and receive several messages, in any order, without waiting for one another for ever.

    They are done when this returns; the handles are there for PyTorch's sake. All ranks serve
    pairs of ranks in one order, of a pair first what the lower rank sends: so every message that
    somebody waits for has a sender that waits for nothing later.
    """
    if not p2p_op_list or not all(isinstance(op, P2POp) for op in p2p_op_list):
        raise ValueError("[batch_isend_irecv] expected a list of P2POp with one entry or more")
    group = group_or_default(p2p_op_list[0].group)
    if any(group_or_default(op.group) is not group for op in p2p_op_list):
        raise ValueError("[batch_isend_irecv] all messages must be of one group")
    own = group.ranks[group.rank]

    def turn(op: P2POp) -> tuple[int, int, bool]:
        low, high = min(own, op.peer), max(own, op.peer)
        return low, high, (op.op is isend) != (own == low)

    for op in sorted(p2p_op_list, key=turn):
        move = group.send if op.op is isend else group.recv
        move(op.tensor, op.peer, op.tag, depth=1)
    return [Work() for _ in p2p_op_list]


# -- collectives of Python objects ------------------------------------------------------------


def _check_list(op: str, items: list[Any], group: ProcessGroup) -> None:
    if len(items) != group.world_size:
        raise ValueError(
            f"[{op}] one entry per rank is needed: got {len(items)}, expected {group.world_size}"
        )


def all_gather_object(object_list: list[Any], obj: Any, group: ProcessGroup | None = None) -> None:
    """Fill `object_list` with all ranks' objects. See ``ProcessGroup.all_gather_object``."""
    source = group_or_default(group)
    _check_list("all_gather_object", object_list, source)
    object_list[:] = source.all_gather_object(obj, depth=1)


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    group_dst: int | None = None,
) -> None:
    """Fill `object_gather_list` of rank `dst` with all ranks' objects."""
    source = group_or_default(group)
    dst = root_of("gather_object", "dst", dst, source, group_dst)
    if source.ranks[source.rank] == dst:
        if object_gather_list is None:
            raise ValueError("[gather_object] object_gather_list is needed on rank dst: got None")
        _check_list("gather_object", object_gather_list, source)
    gathered = source.gather_object(obj, dst, depth=1)
    if gathered is not None and object_gather_list is not None:
        object_gather_list[:] = gathered


def scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    src: int | None = None,
    group: ProcessGroup | None = None,
    group_src: int | None = None,
) -> None:
    """Put the r-th of rank `src`'s objects into ``scatter_object_output_list[0]`` of rank r."""
    source = group_or_default(group)
    src = root_of("scatter_object_list", "src", src, source, group_src)
    if not scatter_object_output_list:
        raise ValueError("[scatter_object_list] the output list needs at least one entry")
    if source.ranks[source.rank] == src:
        if scatter_object_input_list is None:
            raise ValueError("[scatter_object_list] an input list is needed on rank src: got None")
        _check_list("scatter_object_list", scatter_object_input_list, source)
    received = source.scatter_object_list(scatter_object_input_list, src, depth=1)
    scatter_object_output_list[0] = received


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: ProcessGroup | None = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Replace the items of `object_list` by those of rank `src`."""
    source = group_or_default(group)
    src = root_of("broadcast_object_list", "src", src, source, group_src)
    source.broadcast_object_list(object_list, src, depth=1)
