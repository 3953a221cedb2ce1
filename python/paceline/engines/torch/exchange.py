# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch as tensors of the core and back, over the same memory; and collectives.

Knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from paceline import _C
from paceline._dlpack import from_dlpack
from paceline.dtypes import ALL

from ..._call_site import frames_of_ours
from .device_group import DeviceGroup, device_group, goes_by_torch

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["CORE", "all_gather", "all_reduce", "broadcast", "from_core", "overwrite", "to_core"]

#: torch dtypes that the core has too.
CORE = {getattr(torch, dtype.name) for dtype in ALL}
# What torch's backends reduce, of those that matter; CUDA's has no 16-bit integers.
_DEVICE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64}
_OPS = {"sum": "SUM", "mean": "AVG", "max": "MAX", "min": "MIN"}


def to_core(tensor: torch.Tensor, op: str = "to_core") -> Any:
    """Give a core tensor over the memory of a torch tensor.

    Raises
    ------
    NotImplementedError
        For a tensor that is not on the CPU.
    TypeError
        For a sparse tensor, or a dtype that the core has not.
    """
    _check(op, tensor)
    if tensor.dtype not in CORE:
        raise TypeError(
            f"[{op}] dtype: got {tensor.dtype}, expected one of "
            f"{', '.join(dtype.name for dtype in ALL)}"
        )
    return from_dlpack(tensor.detach())


def from_core(tensor: Any) -> torch.Tensor:
    """Give a torch tensor over the memory of a core tensor."""
    made: torch.Tensor = torch.from_dlpack(_C.detach(tensor))
    return made


def all_gather(tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Join all ranks' tensors along dimension 0."""
    link = _route("gather", tensor, group)
    own = _dense(tensor)
    out = own.new_empty((group.world_size * own.shape[0], *own.shape[1:]))
    if link is not None:
        link.all_gather(out, own)
        return out
    group.all_gather(_wire(out), _wire(own), depth=frames_of_ours())
    return out


def all_reduce(tensor: torch.Tensor, op: str, group: ProcessGroup) -> torch.Tensor:
    """Give the reduced tensor; the one given is not changed."""
    from paceline.distributed import ReduceOp

    link = _route("reduce", tensor, group)
    out = _dense(tensor).clone()
    wire = torch.view_as_real(out) if out.is_complex() else out
    if out.is_complex() and op in ("max", "min"):
        raise TypeError(f"[reduce] complex numbers have no {op}: got {out.dtype}")
    if wire.dtype not in (CORE if link is None else _DEVICE):
        wire = wire.to(torch.float32 if wire.is_floating_point() else torch.int64)
    if link is not None:
        link.all_reduce(wire, op)
    else:
        group.all_reduce(to_core(wire), ReduceOp[_OPS[op]], depth=frames_of_ours())
    return out if wire.dtype == out.dtype or out.is_complex() else wire.to(out.dtype)


def broadcast(tensor: torch.Tensor, root: int, group: ProcessGroup) -> torch.Tensor:
    """Give root's tensor; the one given is not changed."""
    link = _route("broadcast", tensor, group)
    out = _dense(tensor).clone()
    if link is not None:
        link.broadcast(out, root)
        return out
    group.broadcast(_wire(out), root, depth=frames_of_ours())
    return out


def overwrite(tensor: torch.Tensor, group: ProcessGroup, root: int = 0) -> None:
    """Put one rank's values into a tensor."""
    link = _route("prepare", tensor, group)
    plain = tensor.detach()
    dense = _dense(plain)
    if link is not None:
        link.broadcast(dense, root)
    else:
        group.broadcast(_wire(dense), root, depth=frames_of_ours())
    if dense.data_ptr() != plain.data_ptr():
        plain.copy_(dense)


def _route(op: str, tensor: torch.Tensor, group: ProcessGroup) -> DeviceGroup | None:
    """Give what moves a tensor between the ranks; None for the core."""
    _check_layout(op, tensor)
    return device_group(group, tensor.device) if goes_by_torch(tensor.device) else None


def _check_layout(op: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"[{op}] got a tensor of layout {tensor.layout}: use .to_dense() first")


def _check(op: str, tensor: torch.Tensor) -> None:
    _check_layout(op, tensor)
    if tensor.device.type != "cpu":
        raise NotImplementedError(
            f"[{op}] the core's tensors are in CPU memory: got one on {tensor.device}; use "
            "tensor.cpu()"
        )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Give the values in row-major order, without history or lazy signs."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _wire(dense: torch.Tensor) -> Any:
    """Give a core tensor over dense memory that is only moved; as bytes if its dtype is foreign."""
    if dense.dtype in CORE:
        return to_core(dense)
    flat = dense.reshape(-1) if dense.ndim == 0 else dense
    return to_core(flat.view(torch.uint8))
