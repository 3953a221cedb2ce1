# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""What the Accelerator needs of PyTorch: the Engine protocol, filled in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ...errors import DeviceError
from . import exchange
from .loaders import TorchData
from .models import TorchModels
from .operators import TorchOperators
from .randomness import TorchRandomness
from .scaler import TorchGradScaler

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["ENGINE", "TorchEngine"]

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def _gpu(local_rank: int) -> torch.device:
    """Give the GPU of a process, and make it PyTorch's current one."""
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise DeviceError(
            f"[Accelerator] each process needs a GPU of its own: got local rank {local_rank}, and "
            f"{count} GPUs; start no more than {count} processes on this machine, or use "
            "Accelerator(cpu=True)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


class TorchEngine(TorchModels, TorchData, TorchRandomness):
    """See ``Engine``; the methods are described there by their names."""

    name = "torch"

    # --- what is what ---------------------------------------------------------------------------

    def is_tensor(self, obj: object) -> bool:
        return isinstance(obj, torch.Tensor)

    def is_model(self, obj: object) -> bool:
        return isinstance(obj, torch.nn.Module)

    def is_optimizer(self, obj: object) -> bool:
        return isinstance(obj, torch.optim.Optimizer)

    def is_data_loader(self, obj: object) -> bool:
        return isinstance(obj, torch.utils.data.DataLoader)

    def is_scheduler(self, obj: object) -> bool:
        return isinstance(obj, torch.optim.lr_scheduler.LRScheduler)

    def lend(self, group: ProcessGroup) -> None:
        from .default_group import make_default

        make_default(group)

    # --- devices and precision ------------------------------------------------------------------

    def device(self, local_rank: int, cpu: bool) -> Any:
        return torch.device("cpu") if cpu or not torch.cuda.is_available() else _gpu(local_rank)

    def gradient_scaler(self, device: Any, **options: Any) -> Any:
        if torch.device(str(device)).type != "cpu":
            return TorchGradScaler(torch.device(str(device)).type, **options)
        from ...training.grad_scaler import GradScaler

        return GradScaler(str(device), **options)

    def move(self, tensor: Any, device: Any, non_blocking: bool) -> Any:
        return tensor.to(torch.device(str(device)), non_blocking=non_blocking)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        dtype = _PRECISIONS[precision]
        if not torch.cuda.is_initialized():
            context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=dtype)
            return context
        both = ExitStack()
        for kind in ("cpu", "cuda"):
            both.enter_context(torch.autocast(kind, dtype=dtype))
        return both

    def to_float(self, tensor: Any) -> Any:
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    def operator_log(self, shapes: bool) -> TorchOperators:
        return TorchOperators(shapes)

    # --- tensors --------------------------------------------------------------------------------

    def to_core(self, tensor: Any) -> Any:
        return exchange.to_core(tensor.cpu())

    def from_core(self, tensor: Any) -> Any:
        return exchange.from_core(tensor)

    def shape(self, tensor: Any) -> tuple[int, ...]:
        return tuple(tensor.shape)

    def at_least_1d(self, tensor: Any) -> Any:
        return tensor.reshape(1) if tensor.ndim == 0 else tensor

    def cat(self, tensors: Sequence[Any]) -> Any:
        return torch.cat(list(tensors))

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str]:
        return tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2]

    def empty(self, shape: Sequence[int], dtype: str, beside: Any = None) -> Any:
        device = "cpu" if beside is None else beside.device
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=device)

    def slice(self, tensor: Any, start: int, stop: int) -> Any:
        return tensor[start:stop]

    def pad(self, tensor: Any, dim: int, size: int, value: float, first: bool) -> Any:
        shape = list(tensor.shape)
        shape[dim] = size - shape[dim]
        filler = tensor.new_full(shape, value)
        return torch.cat([filler, tensor] if first else [tensor, filler], dim)

    def scale(self, tensor: Any, factor: float) -> Any:
        return tensor * factor

    def all_gather(self, tensor: Any, group: ProcessGroup) -> Any:
        return exchange.all_gather(tensor, group)

    def all_reduce(self, tensor: Any, op: str, group: ProcessGroup) -> Any:
        return exchange.all_reduce(tensor, op, group)

    def broadcast(self, tensor: Any, root: int, group: ProcessGroup) -> Any:
        return exchange.broadcast(tensor, root, group)


ENGINE = TorchEngine()
