# SPDX-License-Identifier: Apache-2.0
"""The collectives of ``torch.distributed``, with its names, argument order and results.

They act on the default group unless given another one, and are complete when they return unless
``async_op`` asks for a handle. Where PyTorch would hang, these raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.distributed.buffers import (
    Buffer,
    contiguous,
    copy_into,
    empty_flat,
    empty_stack,
    stack,
)
from paceline.distributed.functions import group_or_default
from paceline.distributed.kinds import Kind, ReduceOp
from paceline.distributed.process_group import ProcessGroup, Work


def _done(async_op: bool) -> Work | None:
    # Complete when it returns, handle or not.
    return Work() if async_op else None


def _check_list(op: str, items: Sequence[Buffer], group: ProcessGroup) -> None:
    if len(items) != group.world_size:
        raise ValueError(
            f"[{op}] one tensor per rank is needed: got {len(items)}, expected {group.world_size}"
        )


def root_of(op: str, name: str, root: int | None, group: ProcessGroup, of_group: int | None) -> int:
    """Give the rank in the job of a root: 0 by default, or a rank of the group."""
    if root is not None and of_group is not None:
        raise ValueError(f"[{op}] give {name} or group_{name}, not both")
    if of_group is not None:
        if not 0 <= of_group < group.world_size:
            raise ValueError(
                f"[{op}] group_{name} is outside the group: got {of_group}, expected 0 to "
                f"{group.world_size - 1}"
            )
        return group.ranks[of_group]
    return 0 if root is None else root


def all_reduce(
    tensor: Buffer,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `tensor` over all ranks, in place. See ``ProcessGroup.all_reduce``."""
    return group_or_default(group).all_reduce(tensor, op, async_op, depth=1)


def reduce(
    tensor: Buffer,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Combine `tensor` over all ranks; only rank `dst` gets the result."""
    target = group_or_default(group)
    root = root_of("reduce", "dst", dst, target, group_dst)
    return target.reduce(tensor, root, op, async_op, depth=1)


def reduce_scatter(
    output: Buffer,
    input_list: Sequence[Buffer],
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `input_list[r]` over all ranks into `output` of rank r."""
    target = group_or_default(group)
    _check_list("reduce_scatter", input_list, target)
    joined = stack("reduce_scatter", list(input_list))
    return target.reduce_scatter(output, joined, op, async_op, depth=1)


def reduce_scatter_tensor(
    output: Buffer,
    input: Buffer,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Combine `input` over all ranks; `output` is this rank's part of it."""
    return group_or_default(group).reduce_scatter(output, input, op, async_op, depth=1)


def _unstack(targets: Sequence[Buffer], received: Buffer) -> Callable[[], None]:
    def copy() -> None:
        for rank, target in enumerate(targets):
            copy_into(target, received[rank])

    return copy


def all_gather(
    tensor_list: Sequence[Buffer],
    tensor: Buffer,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Put rank r's `tensor` into `tensor_list[r]`, on every rank."""
    source = group_or_default(group)
    _check_list("all_gather", tensor_list, source)
    packed, _ = contiguous("all_gather", tensor)
    received = empty_stack("all_gather", source.world_size, packed)
    then = _unstack(tensor_list, received)
    return source.run(Kind.ALL_GATHER, packed, received, async_op=async_op, then=then, depth=1)


def all_gather_into_tensor(
    output_tensor: Buffer,
    input_tensor: Buffer,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Put every rank's `input_tensor` into `output_tensor`, one after another."""
    return group_or_default(group).all_gather(output_tensor, input_tensor, async_op, depth=1)


def broadcast(
    tensor: Buffer,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Copy `tensor` from rank `src` to all ranks, in place."""
    source = group_or_default(group)
    root = root_of("broadcast", "src", src, source, group_src)
    return source.broadcast(tensor, root, async_op, depth=1)


def gather(
    tensor: Buffer,
    gather_list: Sequence[Buffer] | None = None,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Put rank r's `tensor` into `gather_list[r]` of rank `dst`; others pass no list.

    Raises
    ------
    ValueError
        Rank `dst` gave no list or one of another length, or another rank gave one.
    CollectiveMismatchError
        The ranks' tensors differ in shape or dtype; nothing was written.
    """
    target = group_or_default(group)
    dst = root_of("gather", "dst", dst, target, group_dst)
    root = target.group_rank("gather", dst)
    packed, _ = contiguous("gather", tensor)
    if root != target.rank:
        _needs_none("gather", "gather_list", gather_list, "dst")
        return target.run(Kind.GATHER, packed, None, root=root, async_op=async_op, depth=1)
    targets = _needs_list("gather", "gather_list", gather_list, target, "dst")
    received = empty_stack("gather", target.world_size, packed)
    then = _unstack(targets, received)
    return target.run(
        Kind.GATHER, packed, received, root=root, async_op=async_op, then=then, depth=1
    )


def scatter(
    tensor: Buffer,
    scatter_list: Sequence[Buffer] | None = None,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Put `scatter_list[r]` of rank `src` into `tensor` of rank r; others pass no list.

    Raises
    ------
    ValueError
        Rank `src` gave no list or one of another length, or another rank gave one.
    CollectiveMismatchError
        The ranks' tensors differ in shape or dtype; nothing was written.
    """
    source = group_or_default(group)
    src = root_of("scatter", "src", src, source, group_src)
    root = source.group_rank("scatter", src)
    if root != source.rank:
        _needs_none("scatter", "scatter_list", scatter_list, "src")
        return source.run(Kind.SCATTER, None, tensor, root=root, async_op=async_op, depth=1)
    joined = stack(
        "scatter", list(_needs_list("scatter", "scatter_list", scatter_list, source, "src"))
    )
    return source.run(Kind.SCATTER, joined, tensor, root=root, async_op=async_op, depth=1)


def _needs_none(op: str, name: str, items: Sequence[Buffer] | None, root: str) -> None:
    if items:
        raise ValueError(f"[{op}] only rank {root} passes {name}: got {len(items)} items elsewhere")


def _needs_list(
    op: str, name: str, items: Sequence[Buffer] | None, group: ProcessGroup, root: str
) -> Sequence[Buffer]:
    if items is None:
        raise ValueError(f"[{op}] {name} is needed on rank {root}: got None")
    _check_list(op, items, group)
    return items


def all_to_all_single(
    output: Buffer,
    input: Buffer,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Send the j-th part of `input` to rank j; `output` is what all sent here, by rank.

    See ``ProcessGroup.all_to_all``.
    """
    group_or_default(group).all_to_all(
        output, input, output_split_sizes, input_split_sizes, depth=1
    )
    return _done(async_op)


def all_to_all(
    output_tensor_list: Sequence[Buffer],
    input_tensor_list: Sequence[Buffer],
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Send `input_tensor_list[j]` to rank j; rank i's tensor comes into `output_tensor_list[i]`.

    The tensors may differ in size; what rank i sends to rank j must be as large as what j expects
    of i.
    """
    target = group_or_default(group)
    _check_list("all_to_all", output_tensor_list, target)
    _check_list("all_to_all", input_tensor_list, target)
    source, splits = _flat("all_to_all", input_tensor_list)
    received, expected = _flat("all_to_all", output_tensor_list)
    target.all_to_all(received, source, expected, splits, depth=1)
    at = 0
    for each, n in zip(output_tensor_list, expected, strict=True):
        copy_into(each, received[at : at + n].reshape(each.shape))
        at += n
    return _done(async_op)


def _flat(op: str, parts: Sequence[Buffer]) -> tuple[Buffer, list[int]]:
    """Join parts of any shapes into one flat piece of memory; the elements of each."""
    sizes = [1] * len(parts)
    for index, part in enumerate(parts):
        if not hasattr(part, "reshape") or part.dtype != parts[0].dtype:
            raise TypeError(
                f"[{op}] a list needs tensors or NumPy arrays of one dtype: got "
                f"{type(part).__name__} of {getattr(part, 'dtype', 'unknown dtype')}"
            )
        for dim in part.shape:
            sizes[index] *= dim
    joined = empty_flat(op, sum(sizes), parts[0])
    at = 0
    for part, n in zip(parts, sizes, strict=True):
        copy_into(joined[at : at + n], part.reshape(-1))
        at += n
    return joined, sizes


def barrier(
    group: ProcessGroup | None = None,
    async_op: bool = False,
    device_ids: Sequence[int] | None = None,
) -> Work | None:
    """Wait until every rank is here; names who is missing when the timeout passes."""
    group_or_default(group).barrier(depth=1)
    return _done(async_op)
