# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""What the Accelerator needs of PyTorch: the Engine protocol, filled in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ...announce import say
from . import exchange
from .loaders import TorchData
from .models import TorchModels
from .operators import TorchOperators
from .randomness import TorchRandomness

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["ENGINE", "TorchEngine"]

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def _say_that_gpus_wait() -> None:
    say(
        "PyTorch sees a GPU, but this version trains on the CPU; Accelerator(cpu=True) asks for "
        "that and silences this line"
    )


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

    # --- devices and precision ------------------------------------------------------------------

    def device(self, local_rank: int, cpu: bool) -> Any:
        if local_rank == 0 and not cpu and torch.cuda.is_available():
            _say_that_gpus_wait()
        return torch.device("cpu")  # the only device of this version

    def move(self, tensor: Any, device: Any, non_blocking: bool) -> Any:
        return tensor.to(torch.device(str(device)), non_blocking=non_blocking)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=_PRECISIONS[precision])
        return context

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

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype))

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
