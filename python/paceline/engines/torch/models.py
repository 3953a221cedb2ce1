# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""The torch engine's part that has to do with models and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from paceline import _C

from ..alike import AlikeModels
from . import exchange
from .sync import TorchGradientSync, driven

if TYPE_CHECKING:
    from ...distributed import ProcessGroup
    from ...utils.dataclasses import DistributedDataParallelKwargs

__all__ = ["TorchModels"]

# What wrappers put before every name of a state dict: DistributedDataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


class TorchModels(AlikeModels):
    """Base of ``TorchEngine``; the methods are described in ``Engine`` by their names."""

    def move_model(self, model: Any, device: Any) -> None:
        model.to(torch.device(str(device)))

    def copy_from_rank_zero(self, model: Any, group: ProcessGroup, root: int = 0) -> None:
        for tensor in [*model.parameters(), *model.buffers()]:
            exchange.overwrite(tensor, group, root)

    def average_parameters(self, model: Any, group: ProcessGroup) -> None:
        for parameters in _alike(parameter.detach() for parameter in model.parameters()):
            flat = torch.cat([p.reshape(-1) for p in parameters])
            mean = exchange.all_reduce(flat, "mean", group)
            for p, part in zip(
                parameters, mean.split([p.numel() for p in parameters]), strict=True
            ):
                p.copy_(part.view_as(p))

    def copy_buffers_from_rank_zero(self, model: Any, group: ProcessGroup) -> None:
        # Together: a model has many small ones, and each collective costs as much as it moves.
        floating = (buffer.detach() for buffer in model.buffers() if buffer.is_floating_point())
        for buffers in _alike(floating):
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            exchange.overwrite(flat, group)
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    # --- training -------------------------------------------------------------------------------

    def gradient_sync(
        self,
        model: Any,
        group: ProcessGroup,
        options: DistributedDataParallelKwargs,
        taken: set[int],
    ) -> TorchGradientSync | None:
        named = self._to_synchronise(model, taken)
        return TorchGradientSync(named, group, options.bucket_cap_mb) if named else None

    def backward(self, loss: Any, divisor: int, **kwargs: Any) -> None:
        with driven():
            (loss if divisor == 1 else loss / divisor).backward(**kwargs)

    def unscale_(self, grads: Sequence[Any], factor: float) -> bool:
        """One call of the core for what it can hold; torch's own operators for the rest."""
        flat, rest = [], []
        for grad in grads:
            memory = _flat(grad)
            if memory is None:
                rest.append(grad)
            else:
                flat.append(memory)
        finite = _C.unscale_(flat, factor)
        found: dict[torch.device, list[torch.Tensor]] = {}
        for grad in rest:
            values = grad._values() if grad.layout is not torch.strided else grad
            found.setdefault(values.device, []).append(torch.isfinite(values).all())
            if factor != 1.0:
                values.mul_(factor)
        # One look at each device: it must finish all that it has to do for that.
        return all([bool(torch.stack(each).all()) for each in found.values()]) and finite

    def unscale_gradients(self, parameters: Sequence[Any], factor: float) -> bool:
        return self.unscale_([p.grad for p in parameters if p.grad is not None], factor)

    def step_was_finite(self, optimizer: Any) -> bool | None:
        return None

    def look_later(self, optimizer: Any, losses: Sequence[Any]) -> None:
        return None

    def is_finite(self, tensor: Any) -> bool | None:
        if tensor.device.type != "cpu" or tensor.numel() != 1:
            return None
        value = tensor.item()
        return math.isfinite(abs(value) if isinstance(value, complex) else value)

    def clip_grad_norm_(
        self, parameters: Any, max_norm: float, norm_type: float, clip: bool
    ) -> Any:
        params = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        grads = [p.grad.detach() for p in params if p.grad is not None]
        norms = [torch.linalg.vector_norm(grad, norm_type) for grad in grads]
        if not norms:
            return torch.zeros(())
        total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        if clip and bool(torch.isfinite(total)):
            # As torch.nn.utils.clip_grad_norm_, which would compute the norm once more.
            factor = max_norm / (total + 1e-6)
            if bool(factor < 1):
                torch._foreach_mul_(grads, factor)
        return total

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        torch.nn.utils.clip_grad_value_(parameters, clip_value)

    # --- checkpoints ----------------------------------------------------------------------------

    def buffers(self, model: Any) -> dict[str, Any]:
        model = getattr(model, "_orig_mod", model)
        saved = model.state_dict().keys()
        return {name: buffer for name, buffer in model.named_buffers() if name in saved}

    def state_dict(self, model: Any) -> dict[str, Any]:
        state: dict[str, Any] = getattr(model, "_orig_mod", model).state_dict()
        return state

    def load_state_dict(self, model: Any, state: Mapping[str, Any], strict: bool) -> None:
        """Copy values in; a prefix that a wrapper left before every name is taken off."""
        model = getattr(model, "_orig_mod", model)
        own = model.state_dict()
        for prefix in _PREFIXES:
            if state and all(name.startswith(prefix) and name not in own for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
        values = {
            name: exchange.from_core(value) if isinstance(value, _C.Tensor) else value
            for name, value in state.items()
        }
        model.load_state_dict(values, strict=strict)

    def gradients(self, model: Any) -> dict[str, Any]:
        named = getattr(model, "_orig_mod", model).named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    def set_gradients(self, model: Any, named: Mapping[str, Any]) -> None:
        for name, parameter in getattr(model, "_orig_mod", model).named_parameters():
            grad = named.get(name)
            if isinstance(grad, _C.Tensor):
                grad = exchange.from_core(grad).to(parameter.device)
            parameter.grad = grad


def _alike(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Put tensors of one dtype and device together, in their order."""
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _flat(grad: torch.Tensor) -> Any:
    """Give a contiguous core tensor over a gradient's memory, in whatever order it lies there."""
    if grad.layout is not torch.strided or not grad.is_cpu:
        return None
    if not grad.is_floating_point() or grad.dtype not in exchange.CORE:
        return None
    dense = grad
    if not grad.is_contiguous():
        dense = grad.permute(sorted(range(grad.ndim), key=grad.stride, reverse=True))
        if not dense.is_contiguous():
            return None
    # Without the questions of `from_dlpack`, which take ten times as long: this is asked for every
    # gradient of every step, and all of them are answered above.
    return _C.from_dlpack(torch.utils.dlpack.to_dlpack(dense))[0]
