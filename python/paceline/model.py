# SPDX-License-Identifier: Apache-2.0
"""What ``prepare`` does to a model: equal weights, synchronised gradients, mixed precision.

The model object itself is given back; its ``forward`` is replaced on the instance where that is
needed. Knows models through the engine only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ._call_site import frames_of_ours
from ._trace import Kind, span
from .engines import known_engine
from .errors import CollectiveMismatchError
from .utils.operations import convert_to_fp32

if TYPE_CHECKING:
    from .distributed import ProcessGroup
    from .engines import Engine, GradientSync
    from .settings import Settings
    from .state import GradientState
    from .training.joining import JoinedRanks

__all__ = ["PreparedForward", "PreparedModel", "PreparedModels", "synchronises", "unwrap_forward"]


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
        entry: PreparedModel | None = None,
    ) -> None:
        self.forward = forward
        # Where inspect.signature looks: libraries read a model's arguments off its forward.
        self.__wrapped__ = forward
        self.precision = precision
        self._engine = engine
        self._entry = entry  # None where gradients are not synchronised

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward."""
        with span(Kind.OPERATOR, "model forward"):
            if self._entry is not None:
                self._entry.begin_forward()
            if self.precision == "no":
                return self.forward(*args, **kwargs)
            with self._engine.autocast(self.precision):
                outputs = self.forward(*args, **kwargs)
            return convert_to_fp32(outputs)

    def close(self) -> None:
        """Leave the process group."""
        if self._entry is not None:
            self._entry.close()
            self._entry = None

    @property
    def entry(self) -> PreparedModel | None:
        """What synchronises the model's gradients."""
        return self._entry

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedForward:
        return PreparedForward(copy.deepcopy(self.forward, memo), self.precision, self._engine)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedForward, (self.forward, self.precision, self._engine)


class PreparedModel:
    """One model, and what keeps it equal on all ranks.

    Parameters
    ----------
    model : Module
        The model.
    engine : Engine
        That of its tensors.
    sync : GradientSync or None
        None where its gradients are not synchronised.
    number : int
        In the order of preparing.
    copy_buffers : callable, optional
        Makes the buffers equal to rank 0's, where that is worth it.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        sync: GradientSync | None,
        number: int = 0,
        copy_buffers: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.engine = engine
        self.sync = sync
        self.number = number
        self.joined: JoinedRanks | None = None  # inside join_uneven_inputs
        self.reduces = True  # whether the gradients of the last forward pass are reduced
        self._copy_buffers = copy_buffers
        self._on = True

    def begin_forward(self) -> None:
        """Tell the other ranks that the model runs, and get rank 0's buffers."""
        if self.sync is None:
            return
        self.reduces = self._on
        owed = self.sync.owed
        self.sync.expect()
        copies = self._copy_buffers is not None and self.model.training and self._on
        if self.joined is not None:
            announced = self.sync.owed and not owed
            copies = announced and self.joined.begin_forward(self, copies)
        if copies and self._copy_buffers is not None:
            self._copy_buffers()

    @contextmanager
    def reducing(self, on: bool) -> Iterator[None]:
        """Reduce gradients inside the block, or keep them on their rank."""
        if self.sync is None:
            yield
            return
        before, self._on = self._on, on
        self.sync.set_sync(on)
        try:
            yield
        finally:
            self._on = before
            self.sync.set_sync(before)

    def close(self) -> None:
        """Stop synchronising."""
        if self.sync is not None:
            self.sync.close()
            self.sync = None
        self._copy_buffers = None
        self.joined = None


class PreparedModels:
    """The models of one Accelerator.

    Parameters
    ----------
    group : callable
        Gives the process group, None for one process.
    settings : Settings
        Precision and bucket sizes.
    gradient_state : GradientState
        Tells whether buffers are worth copying before a forward pass.
    """

    def __init__(
        self,
        group: Callable[[], ProcessGroup | None],
        settings: Settings,
        gradient_state: GradientState,
    ) -> None:
        self.joined_ranks: JoinedRanks | None = None  # inside join_uneven_inputs
        self._current_group = group
        self._settings = settings
        self._gradient_state = gradient_state
        self._entries: dict[int, PreparedModel] = {}
        self._synced: set[int] = set()  # ids of parameters, which the models keep alive

    @property
    def _group(self) -> ProcessGroup | None:
        return self._current_group()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        """Give the models in the order in which they were prepared."""
        return iter([entry.model for entry in self._entries.values()])

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
        entry = PreparedModel(model, engine, sync, len(self._entries), copy_buffers)
        self._entries[id(model)] = entry
        precision = str(self._settings.precision) if self._settings.autocast.enabled else "no"
        if precision != "no" or sync is not None:
            forward = model.forward
            watched = None if sync is None else entry
            model.forward = PreparedForward(forward, precision, engine, watched)

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

        return lambda: engine.copy_buffers_from_rank_zero(model, group)

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """Keep the gradients of one model on their rank inside the block."""
        entry = self._entries.get(id(model))
        with nullcontext() if entry is None else entry.reducing(False):
            yield

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

    def scale_gradients(self, models: Sequence[Any], factor: float) -> None:
        """Multiply the gradients of some models, or of all where none is named."""
        for model in models or list(self):
            entry = self._entries.get(id(model))
            engine = known_engine(model) if entry is None else entry.engine
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            if grads:
                engine.unscale_(grads, factor)

    @contextmanager
    def joined(self, models: Sequence[Any], others: Callable[[], Sequence[Any]]) -> Iterator[None]:
        """Let ranks leave the loop in the block at different times; see ``training/joining.py``.

        Parameters
        ----------
        models : sequence
            Those that run inside.
        others : callable
            Gives what else is to be equal at the end: optimizers, schedulers.

        Raises
        ------
        ValueError
            For what is not a model prepared here, or a block inside another one.
        """
        group = self._group
        if group is None:
            yield
            return
        entries = [self._entries.get(id(model)) for model in models]
        for model, entry in zip(models, entries, strict=True):
            if entry is None or entry.sync is None:
                raise ValueError(
                    "[join_uneven_inputs] joinables: got "
                    f"{type(model).__name__}, expected models that this Accelerator prepared"
                )
        if self.joined_ranks is not None:
            raise ValueError("[join_uneven_inputs] is active already: do not nest it")
        from .training.joining import JoinedRanks

        known = [entry for entry in entries if entry is not None]
        ranks = self.joined_ranks = JoinedRanks(group, known)
        for entry in known:
            entry.joined = ranks
        try:
            yield
            for entry in known:
                entry.joined = None
            ranks.serve()
            ranks.hand_over(others())
        finally:
            self.joined_ranks = None
            for entry in known:
                entry.joined = None

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Give all parameters with their names; with several models, the model's number first."""
        several = len(self._entries) > 1
        for number, entry in enumerate(self._entries.values()):
            for name, p in entry.model.named_parameters():
                yield (f"model {number}: {name}" if several else name), p

    def nonfinite_ranks(self, optimizer: Any) -> list[int]:
        """Give the ranks whose own gradients were not finite before the reduction, where known."""
        return []

    @property
    def joining(self) -> bool:
        """Whether ``join_uneven_inputs`` is active, so that some ranks may not be training."""
        return self.joined_ranks is not None

    def gradients_agree(self, optimizer: Any) -> bool:
        """Whether an optimizer's gradients are the same on all ranks: reduced, all of them."""
        if self.joining or not all(entry.reduces for entry in self._entries.values()):
            return False
        own = [p for group in optimizer.param_groups for p in group["params"]]
        return self._group is not None and all(id(p) in self._synced for p in own)

    def close(self) -> None:
        """Forget all models and stop synchronising their gradients."""
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()
        self._synced.clear()


@contextmanager
def synchronises(model: Any) -> Iterator[None]:
    """Reduce a prepared model's gradients inside the block, whatever is around it."""
    forward = model.__dict__.get("forward")
    entry = forward.entry if isinstance(forward, PreparedForward) else None
    if entry is None:
        yield
        return
    entry.reduces = True
    with entry.reducing(True):
        yield


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
        if getattr(model, "forward", None) != forward.forward:  # torch.compile's is the instance's
            model.forward = forward.forward


def _describe(entry: tuple[str, tuple[int, ...], str, bool]) -> str:
    name, shape, dtype, requires_grad = entry
    return f"{name} {list(shape)} {dtype}{'' if requires_grad else ' (frozen)'}"
