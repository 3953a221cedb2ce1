# SPDX-License-Identifier: Apache-2.0
"""What ``prepare`` does to a model: equal weights, synchronised gradients, mixed precision.

The model object itself is given back; its ``forward`` is replaced on the instance where that is
needed. Knows models through the engine only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._call_site import frames_of_ours
from .errors import CollectiveMismatchError
from .utils.operations import convert_to_fp32

if TYPE_CHECKING:
    from .distributed import ProcessGroup
    from .engines import Engine, GradientSync
    from .settings import Settings
    from .state import GradientState

__all__ = ["PreparedForward", "PreparedModels", "unwrap_forward"]


class PreparedForward:
    """A model's ``forward`` in mixed precision with fp32 results, announced to the other ranks.

    A class and not a closure, so that a prepared model can still be deep-copied: the copy's
    forward then belongs to the copy, and no longer touches the process group.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        precision: str,
        engine: Engine,
        sync: GradientSync | None = None,
        copy_buffers: Callable[[], None] | None = None,
    ) -> None:
        self.forward = forward
        self.precision = precision
        self._engine = engine
        self._sync = sync
        self._copy_buffers = copy_buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward."""
        if self._sync is not None:
            self._sync.expect()
        if self._copy_buffers is not None:
            self._copy_buffers()
        if self.precision == "no":
            return self.forward(*args, **kwargs)
        with self._engine.autocast(self.precision):
            outputs = self.forward(*args, **kwargs)
        return convert_to_fp32(outputs)

    def close(self) -> None:
        """Leave the process group."""
        if self._sync is not None:
            self._sync.close()
            self._sync = None
        self._copy_buffers = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedForward:
        return PreparedForward(copy.deepcopy(self.forward, memo), self.precision, self._engine)


@dataclass
class _Entry:
    model: Any
    engine: Engine
    sync: GradientSync | None


class PreparedModels:
    """The models of one Accelerator.

    Parameters
    ----------
    group : ProcessGroup or None
        None for one process.
    settings : Settings
        Precision and bucket sizes.
    gradient_state : GradientState
        Tells whether buffers are worth copying before a forward pass.
    """

    def __init__(
        self, group: ProcessGroup | None, settings: Settings, gradient_state: GradientState
    ) -> None:
        self._group = group
        self._settings = settings
        self._gradient_state = gradient_state
        self._entries: dict[int, _Entry] = {}
        self._synced: set[int] = set()  # ids of parameters, which the models keep alive

    def add(self, model: Any, engine: Engine, device: Any, evaluation_mode: bool) -> None:
        """Prepare a model; one that was prepared here already is left as it is.

        One that another Accelerator prepared leaves that one: its gradients can be in one place.
        """
        if id(model) in self._entries:
            return
        release_forward(model)
        if device is not None:
            engine.move_model(model, device)
        sync: GradientSync | None = None
        copy_buffers: Callable[[], None] | None = None
        if self._group is not None:
            self._compare(model, engine, self._group)
            engine.copy_from_rank_zero(model, self._group)
            if not evaluation_mode:
                sync = engine.gradient_sync(model, self._group, self._settings.ddp, self._synced)
                copy_buffers = self._buffer_copy(model, engine, self._group)
        self._entries[id(model)] = _Entry(model, engine, sync)
        precision = str(self._settings.precision) if self._settings.autocast.enabled else "no"
        if precision != "no" or sync is not None:
            model.forward = PreparedForward(model.forward, precision, engine, sync, copy_buffers)

    @staticmethod
    def _compare(model: Any, engine: Engine, group: ProcessGroup) -> None:
        """Refuse models that differ between the ranks, by the first parameter that differs."""
        mine = engine.signature(model)
        all_signatures = group.all_gather_object(mine, depth=frames_of_ours())
        first = all_signatures[0]
        for rank, other in enumerate(all_signatures):
            if other == first:
                continue
            at = next(
                (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b),
                min(len(first), len(other)),
            )
            here, there = (
                _describe(signature[at]) if at < len(signature) else "nothing"
                for signature in (first, other)
            )
            raise CollectiveMismatchError(
                f"[prepare] the ranks prepare different models: entry {at} is {here} on rank 0 "
                f"and {there} on rank {rank} ({len(first)} and {len(other)} entries in all)"
            )

    def _buffer_copy(
        self, model: Any, engine: Engine, group: ProcessGroup
    ) -> Callable[[], None] | None:
        if not self._settings.ddp.broadcast_buffers or not engine.has_float_buffers(model):
            return None

        def copy_buffers() -> None:
            if model.training and self._gradient_state.sync_gradients:
                engine.copy_buffers_from_rank_zero(model, group)

        return copy_buffers

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """Keep the gradients of one model on their rank inside the block."""
        entry = self._entries.get(id(model))
        sync = None if entry is None else entry.sync
        if sync is None:
            yield
            return
        sync.set_sync(False)
        try:
            yield
        finally:
            sync.set_sync(True)

    def backward(self, engine: Engine, loss: Any, divisor: int, **kwargs: Any) -> None:
        """Run a backward pass of ``loss / divisor``, and leave no other rank waiting for it.

        A loss that went through none of the models that ran here may go through one of them
        elsewhere; that rank then waits for this one's part of the reduction.
        """
        syncs = [entry.sync for entry in self._entries.values() if entry.sync is not None]
        owed = [sync for sync in syncs if sync.owed]
        engine.backward(loss, divisor, **kwargs)
        if all(sync.owed for sync in owed):
            for sync in owed:
                sync.settle()

    def close(self) -> None:
        """Forget all models and stop synchronising their gradients."""
        for entry in self._entries.values():
            if entry.sync is not None:
                entry.sync.close()
        self._entries.clear()
        self._synced.clear()


def unwrap_forward(model: Any) -> None:
    """Take mixed precision off a model's ``forward`` again."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, PreparedForward):
        forward.precision = "no"


def release_forward(model: Any) -> None:
    """Undo what an earlier ``prepare`` did to a model."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, PreparedForward):
        forward.close()
        del model.forward


def _describe(entry: tuple[str, tuple[int, ...], str, bool]) -> str:
    name, shape, dtype, requires_grad = entry
    return f"{name} {list(shape)} {dtype}{'' if requires_grad else ' (frozen)'}"
