# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""What the Accelerator needs of PyTorch: the Engine protocol, filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from .. import LoaderParts
from . import exchange, loaders
from .sync import TorchGradientSync, driven

if TYPE_CHECKING:
    from ...distributed import ProcessGroup
    from ...utils.dataclasses import DistributedDataParallelKwargs

__all__ = ["ENGINE", "TorchEngine"]

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
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
        return torch.device("cpu")  # the only device of this version

    def move(self, tensor: Any, device: Any, non_blocking: bool) -> Any:
        return tensor.to(torch.device(str(device)), non_blocking=non_blocking)

    def move_model(self, model: Any, device: Any) -> None:
        model.to(torch.device(str(device)))

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=_PRECISIONS[precision])

    def to_float(self, tensor: Any) -> Any:
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    # --- models ---------------------------------------------------------------------------------

    def signature(self, model: Any) -> list[tuple[str, tuple[int, ...], str, bool]]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return [
            (name, tuple(t.shape), str(t.dtype).rpartition(".")[2], bool(t.requires_grad))
            for name, t in named
        ]

    def copy_from_rank_zero(self, model: Any, group: ProcessGroup) -> None:
        for tensor in [*model.parameters(), *model.buffers()]:
            exchange.overwrite(tensor, group)

    def has_float_buffers(self, model: Any) -> bool:
        return any(buffer.is_floating_point() for buffer in model.buffers())

    def copy_buffers_from_rank_zero(self, model: Any, group: ProcessGroup) -> None:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                exchange.overwrite(buffer, group)

    def gradient_sync(
        self,
        model: Any,
        group: ProcessGroup,
        options: DistributedDataParallelKwargs,
        taken: set[int],
    ) -> TorchGradientSync | None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        named = [(name, p) for name, p in trained if id(p) not in taken]
        if not named:
            return None
        taken.update(id(p) for _, p in named)
        return TorchGradientSync(named, group, options.bucket_cap_mb)

    def backward(self, loss: Any, divisor: int, **kwargs: Any) -> None:
        with driven():
            (loss if divisor == 1 else loss / divisor).backward(**kwargs)

    def clip_grad_norm_(
        self, parameters: Any, max_norm: float, norm_type: float, clip: bool
    ) -> Any:
        params = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if clip:
            return torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
        norms = [torch.linalg.vector_norm(p.grad, norm_type) for p in params if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(norms or [torch.zeros(())]), norm_type)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        torch.nn.utils.clip_grad_value_(parameters, clip_value)

    def save(self, obj: Any, path: Any) -> None:
        torch.save(obj, path)

    # --- random numbers -------------------------------------------------------------------------

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def draw_seed(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_().item())

    def permutation(self, n: int, seed: int) -> Any:
        """Give the order in which Accelerate's seedable sampler, too, reads an epoch."""
        generator = torch.Generator().manual_seed(seed)
        return exchange.to_core(torch.randperm(n, generator=generator))

    # --- data loaders ---------------------------------------------------------------------------

    def loader_parts(self, loader: Any) -> LoaderParts:
        return loaders.loader_parts(loader)

    def with_batches(self, loader: Any, batches: Iterable[Any]) -> Any:
        return loaders.with_batches(loader, batches)

    def with_samples(self, loader: Any, samples: Iterable[Any]) -> Any:
        return loaders.with_samples(loader, samples)

    # --- tensors in collectives -----------------------------------------------------------------

    def shape(self, tensor: Any) -> tuple[int, ...]:
        return tuple(tensor.shape)

    def at_least_1d(self, tensor: Any) -> Any:
        return tensor.reshape(1) if tensor.ndim == 0 else tensor

    def cat(self, tensors: Sequence[Any]) -> Any:
        return torch.cat(list(tensors))

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
