# SPDX-License-Identifier: Apache-2.0
"""A process group as the default one of ``torch.distributed``, for libraries that call that.

transformers' ``Trainer`` gathers its losses by ``torch.distributed`` itself. Under Accelerate there
is a default group for that; here it is the process group that there is already. The collectives
that such libraries use are given; another one is an error that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from ..._call_site import frames_of_ours
from . import exchange

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["TorchView", "make_default"]

_NAME = "paceline"
_OPS = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "mean",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.MIN: "min",
}


def make_default(group: ProcessGroup) -> None:
    """Make a group the default one of ``torch.distributed``, unless there is one."""
    if not dist.is_available() or dist.is_initialized():
        return
    if not hasattr(dist.Backend, _NAME.upper()):
        dist.Backend.register_backend(_NAME, _create, devices=["cpu", "cuda"])
    TorchView.group = group
    dist.init_process_group(
        _NAME,
        store=dist.HashStore(),  # type: ignore[no-untyped-call,unused-ignore]
        rank=group.rank,
        world_size=group.world_size,
        timeout=group.timeout,
    )


def _create(store: Any, rank: int, size: int, timeout: Any) -> TorchView:
    group = TorchView.group
    if (rank, size) != (group.rank, group.world_size):
        raise NotImplementedError(
            "[torch.distributed] a group of some of the ranks: got rank "
            f"{rank} of {size}, expected all {group.world_size}; use paceline.distributed.new_group"
        )
    return TorchView(rank, size)


class TorchView(dist.ProcessGroup):
    """What ``torch.distributed`` calls; the methods have its names and arguments."""

    group: ProcessGroup  # that of this process

    def getBackendName(self) -> str:
        """Give the name of the backend."""
        return _NAME

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        """Reduce in place."""
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        name = next((name for known, name in _OPS.items() if op == known), None)
        if name is None:
            _refuse(f"all_reduce by {op}")
        for tensor in tensors:
            tensor.copy_(exchange.all_reduce(tensor, name, self.group))
        return _done(tensors)

    def allgather(
        self, outputs: list[list[torch.Tensor]], tensors: list[torch.Tensor], opts: Any = None
    ) -> Any:
        """Put every rank's tensor into a list of tensors."""
        for places, tensor in zip(outputs, tensors, strict=True):
            rows = exchange.all_gather(tensor[None], self.group)
            for place, row in zip(places, rows, strict=True):
                place.copy_(row)
        return _done(outputs)

    def _allgather_base(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Any:
        """Put every rank's tensor into one."""
        output.copy_(exchange.all_gather(tensor.reshape(-1), self.group).view(output.shape))
        return _done([output])

    all_gather_single = _allgather_base  # its name in newer versions

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> Any:
        """Overwrite with the root's."""
        for tensor in tensors:
            exchange.overwrite(tensor, self.group, opts.rootRank)
        return _done(tensors)

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all."""
        self.group.barrier(depth=frames_of_ours())
        return _done([])

    def reduce_scatter(self, *args: Any) -> NoReturn:
        """Refuse."""
        _refuse("reduce_scatter")

    def send(self, *args: Any) -> NoReturn:
        """Refuse."""
        _refuse("send")

    def recv(self, *args: Any) -> NoReturn:
        """Refuse."""
        _refuse("recv")


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(
        f"[torch.distributed] {what} is not in paceline's view of the process group: expected "
        "all_reduce, all_gather, broadcast or barrier; use paceline.distributed"
    )


def _done(result: Any) -> Any:
    future: Any = torch.futures.Future()
    future.set_result(result)
    return torch._C._distributed_c10d._create_work_from_future(future)
