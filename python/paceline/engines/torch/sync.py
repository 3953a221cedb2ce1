# SPDX-License-Identifier: Apache-2.0
"""Gradients of a torch model in the reducer's buckets: ``param.grad`` is a view of shared memory.

torch's backward pass tells of each complete gradient by a hook, so that a bucket is reduced while
the pass goes on. The pass is over when ``accelerator.backward`` returns, or, if the script calls
``loss.backward()`` itself, when torch's engine calls back. Buckets, their order and the reduction
are the core's (csrc/ddp, Note [outside gradients]).

Threads: torch runs CPU backward passes on the thread that called; a reducer belongs to it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from paceline import _C

from .device_group import device_group, goes_by_torch
from .device_reducer import DeviceReducer
from .exchange import CORE, from_core

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["TorchGradientSync", "driven"]

_MIB = 1 << 20
_numbers = itertools.count()
# The passes that hooks began while `driven` is active; None: torch's engine is asked to call back.
_begun: list[TorchGradientSync] | None = None


@contextmanager
def driven() -> Iterator[None]:
    """Finish the passes that begin inside, in the order in which their models were prepared."""
    global _begun
    outer, _begun = _begun, []
    try:
        yield
        for sync in sorted(_begun, key=lambda sync: sync.number):
            sync.finish()
    finally:
        begun, _begun = _begun, outer
        for sync in begun:
            sync.give_up()  # does nothing to those that were finished


class TorchGradientSync:
    """See ``GradientSync``; the reducer is the core's, as for native models."""

    def __init__(
        self, named: Sequence[tuple[str, torch.Tensor]], group: ProcessGroup, bucket_cap_mb: float
    ) -> None:
        self.number = next(_numbers)
        self._names = [name for name, _ in named]
        self._params = [parameter for _, parameter in named]
        self._on = True
        self._open = False  # hooks have fired, and nothing has been settled since
        self._ending = False  # somebody will end this pass
        bucket = max(1, int(bucket_cap_mb * _MIB))
        self._reducer: _C.Reducer | DeviceReducer | None = _reducer(named, group, bucket)
        self._views = [
            _like(parameter, self._reducer.grad(i)) for i, parameter in enumerate(self._params)
        ]
        self._places = [view.data_ptr() for view in self._views]
        for i in range(len(self._params)):
            self._take(self._reducer, i)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(i))
            for i, parameter in enumerate(self._params)
        ]

    # --- during a pass --------------------------------------------------------------------------

    def _hook(self, i: int) -> Callable[[torch.Tensor], None]:
        # Weak: torch keeps hooks where Python's garbage collector does not look, so that a hook
        # that held its parameter would never be freed.
        place, find = self._places[i], weakref.ref(self)

        def complete(parameter: torch.Tensor) -> None:
            sync = find()
            if sync is None or sync._reducer is None or not sync._on:
                return
            # The address and not the object: a gradient's `.data` may have been exchanged.
            grad = parameter.grad
            if grad.layout is not torch.strided or grad.data_ptr() != place:
                sync._adopt(sync._reducer, i)
            if not sync._reducer.ready(i):
                raise RuntimeError(
                    f"[backward] parameter {sync._names[i]!r} got another gradient after its first "
                    "was sent to the other ranks: reentrant activation checkpointing does this; "
                    "use checkpoint(..., use_reentrant=False)"
                )
            sync._open = True
            if not sync._ending:
                sync._plan_ending()

        return complete

    def _adopt(self, reducer: _C.Reducer | DeviceReducer, i: int) -> None:
        """Move a gradient into the bucket: torch made a new one, after set_to_none for instance."""
        parameter, view = self._params[i], self._views[i]
        grad = parameter.grad
        if view.data_ptr() != self._places[i]:
            self._views[i] = view = _like(parameter, reducer.grad(i))
        if (view.dtype, view.shape) != (parameter.dtype, parameter.shape):
            raise RuntimeError(
                f"[backward] parameter {self._names[i]!r}: got {tuple(parameter.shape)} of "
                f"{parameter.dtype}, expected {tuple(view.shape)} of {view.dtype} as at prepare: "
                "convert the model before prepare"
            )
        if grad.layout is not torch.strided:
            raise NotImplementedError(
                f"[backward] the gradient of {self._names[i]!r} is sparse, and gradients here are "
                "dense: make the layer with sparse=False"
            )
        view.copy_(grad.detach())
        parameter.grad = view

    def _plan_ending(self) -> None:
        self._ending = True
        if _begun is not None:
            _begun.append(self)
        else:
            torch.autograd.Variable._execution_engine.queue_callback(self._called_back)

    def _called_back(self) -> None:
        # Inside another pass (reentrant checkpointing) this is the end of the inner one: the
        # outer pass may still bring gradients, and the next hook asks to be called back again.
        inner = torch._C._current_autograd_node() is not None
        if inner and self._reducer is not None and self._reducer.missing:
            self._ending = False
            return
        self.finish()

    # --- the end of a pass ----------------------------------------------------------------------

    def finish(self) -> None:
        """Reduce what the hooks have not, wait, and give every rank the same gradients."""
        if self._reducer is None:
            return
        try:
            self._settle(self._reducer)
        except BaseException:
            self.give_up()
            raise
        self._open = self._ending = False

    def _settle(self, reducer: _C.Reducer | DeviceReducer) -> None:
        missing = reducer.missing
        for i in missing:
            self._take(reducer, i)
        reducer.finalize()
        if not missing:
            return
        got = set(reducer.marked)  # some rank has a gradient, so that now all have one
        for i in missing:
            if i in got:
                self._params[i].grad = self._views[i]

    def _take(self, reducer: _C.Reducer | DeviceReducer, i: int) -> None:
        """Tell the reducer of a gradient from before this pass, or that there is none."""
        grad = self._params[i].grad
        if grad is not None:
            if grad.layout is not torch.strided or grad.data_ptr() != self._places[i]:
                self._adopt(reducer, i)
        reducer.mark(i, grad is not None)

    def give_up(self) -> None:
        """Note that the open pass failed half-way."""
        if self._open and self._reducer is not None:
            self._reducer.fail()
        self._open = self._ending = False

    # --- what the Accelerator asks --------------------------------------------------------------

    def set_sync(self, on: bool) -> None:
        """Reduce, or only accumulate, in the backward passes from now on."""
        self._on = on
        if self._reducer is not None:
            self._reducer.set_sync(on)

    def expect(self) -> None:
        """Note that the model ran: where gradients are on and reduced, a reduction is owed."""
        if self._reducer is None or not self._on or not torch.is_grad_enabled():
            return
        if torch._C._current_graph_task_id() != -1:
            return  # a checkpoint computes again what has run already
        if self._open:
            self.give_up()  # loss.backward() raised, and the script went on
        self._reducer.expect()

    @property
    def owed(self) -> bool:
        """Whether the model ran, and no backward pass has come through it since."""
        return self._reducer is not None and self._reducer.owed

    def settle(self) -> None:
        """Reduce what is owed though no gradient came on this rank: other ranks may wait."""
        if self.owed:
            self.finish()

    def close(self) -> None:
        """Give the gradients memory of their own again."""
        reducer, self._reducer = self._reducer, None
        if reducer is None:
            return
        for handle in self._handles:
            handle.remove()
        for i, parameter in enumerate(self._params):
            reducer.mark(i, False)
            if parameter.grad is self._views[i]:
                parameter.grad = parameter.grad.clone()
        self._handles.clear()
        self._views.clear()


def _reducer(
    named: Sequence[tuple[str, torch.Tensor]], group: ProcessGroup, bucket: int
) -> _C.Reducer | DeviceReducer:
    from paceline.distributed import ReduceOp

    names, first = [name for name, _ in named], min(_MIB, bucket)
    places = [_place(name, parameter) for name, parameter in named]
    devices = {parameter.device: name for name, parameter in named}
    if len(devices) > 1:
        raise NotImplementedError(
            "[prepare] a model's gradients are reduced on one device: got parameters on "
            + ", ".join(f"{device} ({name!r})" for device, name in devices.items())
        )
    (device,) = devices
    if goes_by_torch(device):
        link = device_group(group, device)
        return DeviceReducer(link, [parameter for _, parameter in named], names, first, bucket)
    return _C.Reducer(group.native, places, names, first, bucket, ReduceOp.AVG)


def _memory_order(parameter: torch.Tensor) -> tuple[list[int], list[int]]:
    """Give the dimensions from the slowest to the fastest, and the sizes in that order."""
    dense = torch.empty_like(parameter, device="meta")  # strides that torch wants of the gradient
    order = sorted(range(dense.ndim), key=lambda d: (-dense.stride(d), d))
    return order, [dense.shape[d] for d in order]


def _place(name: str, parameter: torch.Tensor) -> tuple[list[int], int]:
    """Give shape and dtype code of a parameter's place in the bucket."""
    from paceline import dtypes

    if parameter.layout is not torch.strided:
        raise NotImplementedError(
            f"[prepare] parameter {name!r} is of layout {parameter.layout}, expected a dense one"
        )
    _, sizes = _memory_order(parameter)
    real = parameter.dtype
    if parameter.is_complex():
        real, sizes = real.to_real(), [*sizes, 2]
    if real not in CORE:
        raise TypeError(f"[prepare] parameter {name!r}: gradients of {real} are not supported")
    code: int = getattr(dtypes, str(real).rpartition(".")[2]).code
    return sizes, code


def _like(parameter: torch.Tensor, place: Any) -> torch.Tensor:
    """Give the torch tensor over a place in a bucket, with the strides of its parameter."""
    if isinstance(place, torch.Tensor):
        return place
    order, _ = _memory_order(parameter)
    inverse = [order.index(d) for d in range(len(order))]
    if parameter.is_complex():
        return torch.view_as_complex(from_core(place)).permute(inverse)
    # Permuted before torch sees it: its tensor is then no view of another, and may be detached.
    return from_core(_C.permute(place, inverse))
