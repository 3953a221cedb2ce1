# SPDX-License-Identifier: Apache-2.0
"""The one seam between the Accelerator and a tensor library.

``Accelerator``, the loaders and the wrappers speak to an ``Engine`` only; ``native.py`` fills it
in for paceline's own tensors, ``torch/`` for PyTorch's. An engine knows neither the Accelerator
nor the launcher.

Which engine serves an object is asked of the engines in turn; an engine whose library the program
has not imported is never asked, so nothing is imported to find out.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..distributed import ProcessGroup
    from ..profiler.record import Event
    from ..utils.dataclasses import DistributedDataParallelKwargs

__all__ = [
    "Engine",
    "GradientSync",
    "LateLook",
    "LoaderParts",
    "autocast",
    "default_engine",
    "engine_of",
    "engine_of_tensor",
    "is_tensor",
    "known_engine",
    "loaded_engines",
]

Order = Literal["sequential", "shuffled", "distributed", "custom", "stream"]


@dataclass(frozen=True)
class LoaderParts:
    """What sharding needs to know of a data loader.

    Attributes
    ----------
    dataset, sampler, batch_sampler : object
        As the loader has them; None where it has none.
    batch_size : int or None
        None if the loader does not batch, or batches by a sampler that does not say.
    drop_last : bool
        Whether a shorter last batch is left out.
    order : str
        ``"sequential"``, ``"shuffled"`` (a plain permutation per epoch), ``"distributed"`` (the
        sampler shares out already), ``"custom"`` (any other sampler), ``"stream"`` (iterable).
    own_batches : bool
        Whether the batches are formed by a sampler of the user's.
    seed : int or None
        Seed of the loader's own random generator, if it has one.
    generators : tuple
        Random generators that sampler and loader were given.
    plain : bool
        Whether a ``"distributed"`` sampler is the library's own class, with nothing overridden.
    pins : bool
        Whether batches lie in pinned memory that nobody else has: a copy from it to the GPU need
        not be waited for.
    """

    dataset: Any
    sampler: Any
    batch_sampler: Any
    batch_size: int | None
    drop_last: bool
    order: Order
    own_batches: bool = False
    seed: int | None = None
    generators: tuple[Any, ...] = ()
    plain: bool = False
    pins: bool = False


class LateLook(Protocol):
    """What a step met, on its way from a device to the host."""

    def arrived(self) -> bool:
        """Whether the answers are there; before, what they are is not to be asked."""

    def wait(self) -> None:
        """Wait until they are."""

    def bad_loss(self) -> str | None:
        """Give the last loss that was not finite, as text."""

    def bad_parameters(self) -> list[Any]:
        """Give the parameters whose gradients were not finite."""


class GradientSync(Protocol):
    """Keeps one model's gradients equal on all ranks."""

    def set_sync(self, on: bool) -> None:
        """Reduce, or only accumulate, in the backward passes from now on."""

    def expect(self) -> None:
        """Note that the model ran: where gradients are on and reduced, a reduction is owed."""

    @property
    def owed(self) -> bool:
        """Whether the model ran, and no backward pass has come through it since."""

    def settle(self) -> None:
        """Reduce what is owed though no gradient came on this rank: other ranks may wait."""

    def close(self) -> None:
        """Stop watching the model."""


class OperatorLog(Protocol):
    """Records a library's operators for a profile."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> dict[int, list[Event]]:
        """End; give the events of each thread, by its number in the system."""


class Engine(Protocol):
    """What a tensor library must offer. Tensors, models and the like are opaque outside.

    What works on a collective takes its group; none of the tensors given is changed, unless its
    method says so.
    """

    name: str

    def is_tensor(self, obj: object) -> bool:
        """Tell whether ``obj`` is this library's tensor."""

    def is_model(self, obj: object) -> bool:
        """Tell whether ``obj`` is a module with parameters."""

    def is_optimizer(self, obj: object) -> bool:
        """Tell whether ``obj`` is an optimizer."""

    def is_data_loader(self, obj: object) -> bool:
        """Tell whether ``obj`` is a data loader."""

    def is_scheduler(self, obj: object) -> bool:
        """Tell whether ``obj`` is a learning-rate scheduler."""

    def lend(self, group: ProcessGroup) -> None:
        """Make a group the library's own default one, if it has such a thing and none yet."""

    # Devices and precision.

    def device(self, local_rank: int, cpu: bool) -> Any:
        """Give the device of a process."""

    def gradient_scaler(self, device: Any, **options: Any) -> Any:
        """Make what scales fp16 losses of models on a device; options of ``GradScalerKwargs``."""

    def move(self, tensor: Any, device: Any, non_blocking: bool) -> Any:
        """Give the tensor on a device; the same one where it is there already."""

    def move_model(self, model: Any, device: Any) -> None:
        """Move a model's parameters and buffers, keeping the objects."""

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Make a context that computes in ``"bf16"`` or ``"fp16"``."""

    def to_float(self, tensor: Any) -> Any:
        """Give a half-precision tensor in fp32, any other as it is."""

    # Models and training.

    def signature(self, model: Any) -> list[tuple[str, tuple[int, ...], str, bool]]:
        """Give name, shape, dtype and whether trained, of parameters and then buffers."""

    def copy_from_rank_zero(self, model: Any, group: ProcessGroup, root: int = 0) -> None:
        """Make parameters and buffers equal to rank 0's (or another's), in place."""

    def average_parameters(self, model: Any, group: ProcessGroup) -> None:
        """Give every parameter the mean over the ranks, in place: one collective per dtype."""

    def has_float_buffers(self, model: Any) -> bool:
        """Tell whether there is a buffer that training may change differently on each rank."""

    def copy_buffers_from_rank_zero(self, model: Any, group: ProcessGroup) -> None:
        """Make floating-point buffers equal to rank 0's, in place."""

    def gradient_sync(
        self,
        model: Any,
        group: ProcessGroup,
        options: DistributedDataParallelKwargs,
        taken: set[int],
    ) -> GradientSync | None:
        """Start synchronising a model's gradients; None if it has nothing to train.

        ``taken`` has the ids of parameters that another model synchronises already, and gets those
        of this one.
        """

    def backward(self, loss: Any, divisor: int, **kwargs: Any) -> None:
        """Run the backward pass of ``loss / divisor``."""

    def unscale_(self, grads: Sequence[Any], factor: float) -> bool:
        """Multiply gradients in place, and tell whether all were finite before, in one pass.

        A factor of 1 only looks.
        """

    def unscale_gradients(self, parameters: Sequence[Any], factor: float) -> bool:
        """As ``unscale_`` for the gradients of those parameters that have one.

        The engine may leave the factor to the optimizer's step, if nobody can tell.
        """

    def step_was_finite(self, optimizer: Any) -> bool | None:
        """Tell whether the gradients of the optimizer's last step were finite.

        None where the step did not look: then ``unscale_`` with a factor of 1 is asked.
        """

    def look_later(self, optimizer: Any, losses: Sequence[Any]) -> LateLook | None:
        """Ask for what ``step_was_finite`` and ``is_finite`` tell, without waiting for it.

        None where nothing would have to be waited for, or cannot be asked for in this way.
        """

    def is_finite(self, tensor: Any) -> bool | None:
        """Tell whether a loss is finite; None where that would have to wait for a device."""

    def clip_grad_norm_(
        self, parameters: Any, max_norm: float, norm_type: float, clip: bool
    ) -> Any:
        """Give the total norm of the gradients, and scale them if ``clip`` and it is above.

        Where the norm is not finite they stay as they are, so that the bad one can be named.
        """

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Limit each element of the gradients."""

    # Checkpoints.

    def state_dict(self, model: Any) -> dict[str, Any]:
        """Give a model's parameters and persistent buffers by name, over the same memory."""

    def buffers(self, model: Any) -> dict[str, Any]:
        """Give those of ``state_dict`` that are no parameters: training may change them by rank."""

    def load_state_dict(self, model: Any, state: Mapping[str, Any], strict: bool) -> None:
        """Copy values into parameters and buffers, in place."""

    def gradients(self, model: Any) -> dict[str, Any]:
        """Give the gradients of the parameters that have one, by the parameter's name."""

    def set_gradients(self, model: Any, named: Mapping[str, Any]) -> None:
        """Make these the gradients; a parameter that is not named has none."""

    def to_core(self, tensor: Any) -> Any:
        """Give a CPU tensor of the core with these values, over the same memory where possible."""

    def from_core(self, tensor: Any) -> Any:
        """Give this library's tensor with the values of the core's, on the CPU."""

    def rng_state(self) -> Any:
        """Give the state of the default generators: tensors of the core, numbers, lists, dicts."""

    def set_rng_state(self, state: Any) -> None:
        """Go on from what ``rng_state`` gave.

        Raises
        ------
        ValueError
            If it is nothing of the kind.
        """

    def seed(self, seed: int) -> None:
        """Start the default generators from a seed."""

    # Random numbers.

    def initial_seed(self) -> int:
        """Give the seed of the default generator."""

    def draw_seed(self) -> int:
        """Draw a seed from the default generator."""

    def permutation(self, n: int, seed: int) -> Any:
        """Give the permutation of 0..n-1 that belongs to a seed, as an int64 core tensor."""

    def own_random(self, seed: int) -> Callable[[], AbstractContextManager[None]]:
        """Make a random stream of its own, which starts at a seed.

        Each call of the result gives a context in which the library's default generators are that
        stream, going on where the last such block ended; outside nothing of it is seen.
        """

    def generator_state(self, generator: Any) -> list[int]:
        """Give the state of one random generator, as bytes."""

    def set_generator_state(self, generator: Any, state: list[int]) -> None:
        """Put one random generator into a state that ``generator_state`` gave."""

    # Data loaders.

    def loader_parts(self, loader: Any) -> LoaderParts:
        """Take a loader apart for sharding."""

    def with_batches(self, loader: Any, batches: Iterable[Any]) -> Any:
        """Make a loader like this one over batches: int64 core tensors, or lists of items."""

    def with_samples(self, loader: Any, samples: Iterable[Any]) -> Any:
        """Make a loader like this one, which does not batch, over other samples."""

    def with_stream(
        self, loader: Any, samples: Iterable[Any], batch_size: int | None, collate: Any
    ) -> Any:
        """Make a loader like this one over another stream, with a collate function of ours.

        It leaves out no short batch; ``batch_size`` None gives single samples.
        """

    def start_epoch(self, loader: Any, first_batch: int, seed: int | None) -> None:
        """Before a loader is iterated: number its first batch, and seed its workers.

        Workers draw random numbers by seed and number of the batch, so that an epoch can be taken
        up in its middle; None lets the loader choose.
        """

    def batches_of(self, loader: Any) -> Iterator[Any]:
        """Iterate a loader that ``with_batches`` made, as it would itself."""

    def worker_info(self) -> tuple[int, int] | None:
        """Give id and number of the loader's workers, in one of them; None outside."""

    def operator_log(self, shapes: bool) -> OperatorLog | None:
        """Give what records this library's operators; None where the core's trace has them."""

    # Tensors in collectives.

    def shape(self, tensor: Any) -> tuple[int, ...]:
        """Give the sizes."""

    def at_least_1d(self, tensor: Any) -> Any:
        """Give a 0-d tensor as one of one element, any other as it is."""

    def cat(self, tensors: Sequence[Any]) -> Any:
        """Join along dimension 0."""

    def describe(self, tensor: Any) -> tuple[tuple[int, ...], str]:
        """Give shape and name of the dtype: what ``empty`` needs to make its like."""

    def empty(self, shape: Sequence[int], dtype: str, beside: Any = None) -> Any:
        """Make a tensor of any values, on the CPU or the device of another one."""

    def slice(self, tensor: Any, start: int, stop: int) -> Any:
        """Take a range of dimension 0."""

    def pad(self, tensor: Any, dim: int, size: int, value: float, first: bool) -> Any:
        """Pad one dimension to ``size`` with a value."""

    def scale(self, tensor: Any, factor: float) -> Any:
        """Multiply by a number."""

    def all_gather(self, tensor: Any, group: ProcessGroup) -> Any:
        """Join all ranks' tensors along dimension 0."""

    def all_reduce(self, tensor: Any, op: str, group: ProcessGroup) -> Any:
        """Give the ``"sum"``, ``"mean"``, ``"max"`` or ``"min"`` over the ranks."""

    def broadcast(self, tensor: Any, root: int, group: ProcessGroup) -> Any:
        """Give rank root's tensor."""


@cache
def default_engine() -> Engine:
    """Give the engine of paceline's own tensors."""
    from . import native

    return native.ENGINE


@contextmanager
def autocast(precision: str) -> Iterator[None]:
    """Compute in ``"bf16"`` or ``"fp16"``, in every library that the program has imported."""
    with ExitStack() as stack:
        for engine in loaded_engines():
            stack.enter_context(engine.autocast(precision))
        yield


def loaded_engines() -> tuple[Engine, ...]:
    """Give the engines of the libraries that the program has imported: ours, then others'."""
    torch = sys.modules.get("torch")
    # `import paceline as torch` may have put us there under that name; and a package that is
    # still being imported cannot have made an object.
    if torch is None or torch.__name__ != "torch" or not hasattr(torch, "nn"):
        return _own()
    return _own_and_torch()


@cache
def _own() -> tuple[Engine, ...]:
    return (default_engine(),)


@cache
def _own_and_torch() -> tuple[Engine, ...]:
    from . import torch as bridge

    return (default_engine(), bridge.ENGINE)


def engine_of(obj: object) -> Engine | None:
    """Give the engine that knows ``obj`` as a model, optimizer, loader, scheduler or tensor."""
    for engine in loaded_engines():
        kinds = (
            engine.is_tensor,
            engine.is_model,
            engine.is_optimizer,
            engine.is_data_loader,
            engine.is_scheduler,
        )
        if any(is_kind(obj) for is_kind in kinds):
            return engine
    return None


def known_engine(obj: object) -> Engine:
    """Give the engine that knows ``obj``.

    Raises
    ------
    TypeError
        When none does.
    """
    engine = engine_of(obj)
    if engine is None:
        raise TypeError(f"[prepare] cannot prepare a {type(obj).__name__}")
    return engine


def is_tensor(obj: object) -> bool:
    """Tell whether any engine calls ``obj`` a tensor."""
    for engine in loaded_engines():  # noqa: SIM110 - asked for every tensor of every batch
        if engine.is_tensor(obj):
            return True
    return False


def engine_of_tensor(tensor: object) -> Engine:
    """Give the engine of a tensor.

    Raises
    ------
    TypeError
        When it is no tensor.
    """
    for engine in loaded_engines():
        if engine.is_tensor(tensor):
            return engine
    raise TypeError(f"expected a tensor, got {type(tensor).__name__}")
