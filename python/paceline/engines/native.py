# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""The engine of paceline's own tensors: everything native that the Accelerator needs.

Classes are looked up in modules that the program has loaded already: where ``paceline.nn`` was
never imported, nothing can be a Module.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from paceline import _C, cuda, dtypes
from paceline._device import CPU, current, device, named, place
from paceline._placing import pinned

from .._call_site import frames_of_ours
from ..announce import say
from .alike import AlikeModels
from .native_data import NativeData
from .native_late import LateLook
from .native_state import NativeState

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..utils.dataclasses import DistributedDataParallelKwargs

__all__ = ["ENGINE", "NativeEngine", "NativeGradientSync"]

_MIB = 1 << 20
_OPS = {"sum": "SUM", "mean": "AVG", "max": "MAX", "min": "MIN"}
_HALF = (dtypes.bfloat16.code, dtypes.float16.code)
_CLASSES = {
    "model": (("paceline.nn", "Module"),),
    "optimizer": (("paceline.optim", "Optimizer"),),
    "loader": (("paceline.utils.data", "DataLoader"),),
    "scheduler": (("paceline.optim.lr_scheduler", "LRScheduler"),),
}


def _classes(kind: str) -> tuple[type, ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _CLASSES[kind])
    return tuple(getattr(module, name) for module, name in loaded if module is not None)


class NativeGradientSync:
    """Gradients of one model, reduced bucket by bucket while the backward pass goes on.

    The buckets take the parameters in reverse order of registration, which is about the order in
    which their gradients come; the first is small, so that reducing starts early.
    """

    def __init__(
        self, named: Sequence[tuple[str, Any]], group: ProcessGroup, bucket_cap_mb: float
    ) -> None:
        from paceline.distributed import ReduceOp

        self._on = True
        bucket = max(1, int(bucket_cap_mb * _MIB))
        self._reducer: _C.Reducer | None = _C.Reducer(
            group.native,
            [parameter for _, parameter in named],
            [name for name, _ in named],
            min(_MIB, bucket),
            bucket,
            ReduceOp.AVG,
        )

    def set_sync(self, on: bool) -> None:
        """Reduce, or only accumulate, in the backward passes from now on."""
        self._on = on
        if self._reducer is not None:
            self._reducer.set_sync(on)

    def expect(self) -> None:
        """Note that the model ran: where gradients are on and reduced, a reduction is owed."""
        if self._reducer is not None and self._on and _C.is_grad_enabled():
            self._reducer.expect()

    @property
    def owed(self) -> bool:
        """Whether the model ran, and no backward pass has come through it since."""
        return self._reducer is not None and self._reducer.owed

    def settle(self) -> None:
        """Reduce what is owed though no gradient came on this rank: other ranks may wait."""
        if self._reducer is not None:
            self._reducer.finalize()

    def close(self) -> None:
        """Give the gradients memory of their own again."""
        self._reducer = None


class NativeEngine(AlikeModels, NativeData, NativeState):
    """See ``Engine``; the methods are described there by their names."""

    name = "native"

    # --- what is what ---------------------------------------------------------------------------

    def is_tensor(self, obj: object) -> bool:
        return isinstance(obj, _C.Tensor)

    def is_model(self, obj: object) -> bool:
        return isinstance(obj, _classes("model"))

    def is_optimizer(self, obj: object) -> bool:
        return isinstance(obj, _classes("optimizer"))

    def is_data_loader(self, obj: object) -> bool:
        return isinstance(obj, _classes("loader"))

    def is_scheduler(self, obj: object) -> bool:
        return isinstance(obj, _classes("scheduler"))

    # --- devices and precision ------------------------------------------------------------------

    def device(self, local_rank: int, cpu: bool) -> Any:
        return _device_of(local_rank, cpu)

    def lend(self, group: ProcessGroup) -> None:
        pass  # paceline.distributed has that group already

    def gradient_scaler(self, device: Any, **options: Any) -> Any:
        from ..training.grad_scaler import GradScaler

        return GradScaler(str(device), **options)

    def move(self, tensor: Any, device: Any, non_blocking: bool) -> Any:
        index = _index(device)
        if index is None:
            return tensor
        if index >= 0 and tensor._device_index < 0 and not tensor._is_pinned:
            # Through pinned memory of our own, which nobody changes: the copy need not be waited
            # for, whatever was asked.
            tensor, non_blocking = pinned(tensor), True
        return _C.to_device(tensor, index, non_blocking)

    def move_model(self, model: Any, device: Any) -> None:
        index = _index(device)
        if index is not None:
            model.to(named(index))

    def operator_log(self, shapes: bool) -> None:
        return None  # they are in the trace

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        from paceline.amp import autocast

        kind = "cpu" if _C.cuda_current() < 0 else "cuda"
        return autocast(kind, dtype={"bf16": dtypes.bfloat16, "fp16": dtypes.float16}[precision])

    def to_float(self, tensor: Any) -> Any:
        if tensor._dtype not in _HALF:
            return tensor
        return _C.to_dtype(tensor, dtypes.float32.code)

    # --- models ---------------------------------------------------------------------------------

    def copy_from_rank_zero(self, model: Any, group: ProcessGroup, root: int = 0) -> None:
        """Make parameters and buffers equal to rank 0's, in place."""
        for tensor in [*model.parameters(), *model.buffers()]:
            _overwrite(tensor, group, root)

    def average_parameters(self, model: Any, group: ProcessGroup) -> None:
        from paceline.distributed import ReduceOp

        by_dtype: dict[int, list[Any]] = {}
        for parameter in model.parameters():
            by_dtype.setdefault(parameter._dtype, []).append(_C.detach(parameter))
        for parameters in by_dtype.values():
            flat = _C.cat([_C.reshape(p, (-1,)) for p in parameters], 0)
            group.all_reduce(flat, ReduceOp.AVG, depth=frames_of_ours())
            at = 0
            for p in parameters:
                _C.copy_(p, _C.reshape(_C.slice(flat, 0, at, at + p._numel(), 1), p.shape))
                at += p._numel()

    def copy_buffers_from_rank_zero(self, model: Any, group: ProcessGroup) -> None:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                _overwrite(buffer, group)

    def gradient_sync(
        self,
        model: Any,
        group: ProcessGroup,
        options: DistributedDataParallelKwargs,
        taken: set[int],
    ) -> NativeGradientSync | None:
        """Start synchronising a model's gradients; None if it has nothing of its own to train."""
        named = self._to_synchronise(model, taken)
        return NativeGradientSync(named, group, options.bucket_cap_mb) if named else None

    def backward(self, loss: Any, divisor: int, **kwargs: Any) -> None:
        (loss if divisor == 1 else loss / divisor).backward(**kwargs)

    def unscale_(self, grads: Sequence[Any], factor: float) -> bool:
        """Multiply gradients in place, and tell whether all were finite, in one pass."""
        return _C.unscale_(list(grads), factor)

    def unscale_gradients(self, parameters: Sequence[Any], factor: float) -> bool:
        """Look only, where nothing else refers to the gradients: the step multiplies."""
        return bool(_C.leaf_scale_(list(parameters), factor, True))

    def step_was_finite(self, optimizer: Any) -> bool | None:
        """Tell what the update kernels saw."""
        finite: bool | None = getattr(optimizer, "grads_were_finite", None)
        return finite

    def look_later(self, optimizer: Any, losses: Sequence[Any]) -> LateLook | None:
        """Have the numbers of a GPU copied to the host behind all that was enqueued."""
        unread = getattr(optimizer, "_unread", None)
        if not unread:
            return None
        return LateLook(unread, [loss for loss in losses if loss._numel() == 1])

    def is_finite(self, tensor: Any) -> bool | None:
        """Tell whether a scalar is finite; other shapes are not looked at."""
        return math.isfinite(tensor.item()) if tensor._numel() == 1 else None

    def clip_grad_norm_(
        self, parameters: Any, max_norm: float, norm_type: float, clip: bool
    ) -> Any:
        """Clip as ``nn.utils.clip_grad_norm_``; without ``clip`` only give the norm."""
        from paceline.nn.utils import clip_grad_norm_

        limit = max_norm if clip else math.inf
        return clip_grad_norm_(parameters, limit, norm_type, scale_nonfinite=False)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        from paceline.nn.utils import clip_grad_value_

        clip_grad_value_(parameters, clip_value)

    # --- tensors in collectives -----------------------------------------------------------------

    def shape(self, tensor: Any) -> tuple[int, ...]:
        return tuple(tensor.shape)

    def at_least_1d(self, tensor: Any) -> Any:
        return _C.reshape(tensor, (1,)) if tensor.ndim == 0 else tensor

    def cat(self, tensors: Sequence[Any]) -> Any:
        return _C.cat(list(tensors), 0)

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str]:
        """Give shape and name of the dtype."""
        return tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2]

    def empty(self, shape: Sequence[int], dtype: str, beside: Any = None) -> Any:
        return _C.empty(list(shape), getattr(dtypes, dtype).code, _at(beside))

    def slice(self, tensor: Any, start: int, stop: int) -> Any:
        return _C.slice(tensor, 0, start, stop, 1)

    def pad(self, tensor: Any, dim: int, size: int, value: float, first: bool) -> Any:
        """Pad one dimension to ``size`` with a value."""
        shape = list(tensor.shape)
        shape[dim] = size - shape[dim]
        filler = _C.full(shape, value, tensor._dtype, tensor._device_index)
        return _C.cat([filler, tensor] if first else [tensor, filler], dim)

    def scale(self, tensor: Any, factor: float) -> Any:
        return tensor * factor

    def all_gather(self, tensor: Any, group: ProcessGroup) -> Any:
        """Join all ranks' tensors along dimension 0."""
        own = _C.contiguous(_C.detach(tensor))
        shape = list(own.shape)
        out = _C.empty([group.world_size * shape[0], *shape[1:]], own._dtype, own._device_index)
        group.all_gather(out, own, depth=frames_of_ours())
        return out

    def all_reduce(self, tensor: Any, op: str, group: ProcessGroup) -> Any:
        """Give the reduced tensor; the one given is not changed."""
        from paceline.distributed import ReduceOp

        out = _C.clone(_C.contiguous(_C.detach(tensor)))
        group.all_reduce(out, ReduceOp[_OPS[op]], depth=frames_of_ours())
        return out

    def broadcast(self, tensor: Any, root: int, group: ProcessGroup) -> Any:
        """Give root's tensor; the one given is not changed."""
        out = _C.clone(_C.contiguous(_C.detach(tensor)))
        group.broadcast(out, root, depth=frames_of_ours())
        return out


def _overwrite(tensor: Any, group: ProcessGroup, root: int = 0) -> None:
    """Put one rank's values into a tensor."""
    plain = _C.detach(tensor)
    if plain._is_contiguous():
        group.broadcast(plain, root, depth=frames_of_ours())
        return
    dense = _C.contiguous(plain)
    group.broadcast(dense, root, depth=frames_of_ours())
    _C.copy_(plain, dense)


def _at(tensor: Any) -> int:
    """The device of another tensor, if there is one; else the CPU."""
    return -1 if tensor is None else int(tensor._device_index)


@functools.cache
def _device_of(local_rank: int, cpu: bool) -> Any:
    """The device of a process: the same at every question, whatever the environment becomes."""
    if cpu or not cuda.is_available():
        reason = None if cpu else cuda.why_unused()
        if reason is not None and local_rank == 0:
            say(f"the GPUs of this machine are not used: {reason}")
        return CPU
    from ..environment import read_environment

    # As Accelerate names them: a number only where there are several.
    return device("cuda") if read_environment().world_size == 1 else named(current())


def _index(where: Any) -> int | None:
    """The core's index of a device; None where it is a GPU that only PyTorch can use.

    It is the Accelerator's where both libraries are loaded, and PyTorch's model is on it.
    """
    foreign = type(where).__module__ == "torch" and not str(where).startswith("cpu")
    if foreign and not cuda.is_available():
        return None
    return place("prepare", str(where) if foreign else where)


ENGINE = NativeEngine()
