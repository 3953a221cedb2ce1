# SPDX-License-Identifier: Apache-2.0
"""Who this process is: default process group, and each Accelerator's own state.

``PartialState()`` is the one default state of a process; it holds the default process group.
Everything else is kept in the Accelerator that made it, so that two of them do not disturb each
other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._call_site import frames_of_ours
from .environment import Environment, read_environment
from .utils.dataclasses import DistributedType, GradientAccumulationPlugin, PrecisionType

if TYPE_CHECKING:
    from .data_loader import DataLoaderShard
    from .distributed import ProcessGroup

__all__ = ["AcceleratorState", "GradientState", "PartialState"]

P = ParamSpec("P")
T = TypeVar("T")


class PartialState:
    """The one default state of this process: which rank it is, and its process group.

    The first call forms the group if ``WORLD_SIZE`` is more than 1, whoever the launcher was and
    whatever the device; later calls give the same object.

    Parameters
    ----------
    cpu : bool
        Use the CPU even where there is another device.
    timeout : datetime.timedelta, optional
        How long a collective may wait; None means 600 seconds.

    Raises
    ------
    ValueError
        When the state exists already and ``timeout`` differs from the one it was made with.
    """

    _default: PartialState | None = None

    group: ProcessGroup | None
    device: Any
    backend: str | None
    distributed_type: DistributedType
    num_processes: int
    process_index: int
    local_process_index: int

    def __new__(cls, cpu: bool = False, *, timeout: timedelta | None = None) -> PartialState:
        """Give the default state, made at the first call."""
        default = cls._default
        if default is None:
            default = super().__new__(cls)
            default._form(read_environment(), cpu, timeout)
            PartialState._default = default
        elif timeout is not None and timeout != default._timeout:
            raise ValueError(
                "[PartialState] the process group exists already, so its timeout cannot be set: "
                f"got {timeout}; pass InitProcessGroupKwargs to the first Accelerator()"
            )
        return default

    def _form(self, env: Environment, cpu: bool, timeout: timedelta | None) -> None:
        from .engines import default_engine

        self._timeout = timeout
        self._local_world_size = env.local_world_size
        self.device = default_engine().device(env.local_rank, cpu or bool(env.use_cpu))
        self.group = None
        self.backend = None
        self.process_index, self.num_processes = env.rank, env.world_size
        self.local_process_index = env.local_rank
        self.distributed_type = DistributedType.NO
        if env.world_size > 1:
            from . import distributed

            if not distributed.is_initialized():
                if timeout is None:
                    distributed.init_process_group()
                else:
                    distributed.init_process_group(timeout=timeout)
            self.group = distributed.default_group()
            self.backend = "shm"
            self.distributed_type = DistributedType.MULTI_CPU

    @classmethod
    def is_initialized(cls) -> bool:
        """Tell whether the default state exists."""
        return cls._default is not None

    @property
    def initialized(self) -> bool:
        """Whether this is the default state."""
        return PartialState._default is self

    @classmethod
    def _reset_state(cls) -> None:
        """Forget the default state without closing its group (for tests)."""
        cls._default = None

    def destroy_process_group(self) -> None:
        """Leave the process group. The next ``PartialState()`` forms a new one."""
        if self.group is not None:
            from . import distributed

            distributed.destroy_process_group()
            self.group = None
        if PartialState._default is self:
            PartialState._default = None

    # --- who is who -----------------------------------------------------------------------------

    @property
    def use_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.num_processes > 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.process_index == 0

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self.local_process_index == 0

    @property
    def is_last_process(self) -> bool:
        """Whether this is the highest rank."""
        return self.process_index == self.num_processes - 1

    def __repr__(self) -> str:
        return (
            f"Distributed environment: {self.distributed_type}"
            f"{'  Backend: ' + self.backend if self.backend else ''}\n"
            f"Num processes: {self.num_processes}\n"
            f"Process index: {self.process_index}\n"
            f"Local process index: {self.local_process_index}\n"
            f"Device: {self.device}\n"
        )

    # --- working together -----------------------------------------------------------------------

    def wait_for_everyone(self) -> None:
        """Wait until every process has come here."""
        if self.group is not None:
            self.group.barrier(depth=frames_of_ours())

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of each machine only."""
        if self.is_local_main_process:
            print(*args, **kwargs)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others."""
        with self._goes_first(self.is_main_process):
            yield

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Let the first rank of each machine run the block before the others."""
        with self._goes_first(self.is_local_main_process):
            yield

    @contextmanager
    def _goes_first(self, first: bool) -> Iterator[None]:
        if not first:
            self.wait_for_everyone()
        yield
        if first:
            self.wait_for_everyone()

    def on_main_process(self, function: Callable[P, T]) -> Callable[P, T | None]:
        """Make a function run on rank 0 only; the others get None."""
        return self._only_if(lambda: self.is_main_process, function)

    def on_local_main_process(self, function: Callable[P, T]) -> Callable[P, T | None]:
        """Make a function run on the first rank of each machine only."""
        return self._only_if(lambda: self.is_local_main_process, function)

    def on_last_process(self, function: Callable[P, T]) -> Callable[P, T | None]:
        """Make a function run on the highest rank only."""
        return self._only_if(lambda: self.is_last_process, function)

    def on_process(
        self, function: Callable[P, T] | None = None, process_index: int | None = None
    ) -> Any:
        """Make a function run on one rank only; also usable as ``on_process(process_index=1)``."""
        if function is None:
            return lambda real: self.on_process(real, process_index)
        return self._only_if(lambda: self.process_index == process_index, function)

    def on_local_process(
        self, function: Callable[P, T] | None = None, local_process_index: int | None = None
    ) -> Any:
        """Make a function run on one rank of each machine only."""
        if function is None:
            return lambda real: self.on_local_process(real, local_process_index)
        return self._only_if(lambda: self.local_process_index == local_process_index, function)

    @staticmethod
    def _only_if(here: Callable[[], bool], function: Callable[P, T]) -> Callable[P, T | None]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return function(*args, **kwargs) if here() else None

        return run

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """Give each process its share of a list, tuple, tensor, or dict of those.

        Parameters
        ----------
        inputs : list, tuple, dict or tensor
            What to share out. The first ``len(inputs) % num_processes`` processes get one more.
        apply_padding : bool
            Repeat the last item so that all shares are equally long.
        """
        yield split_share(inputs, self.process_index, self.num_processes, apply_padding)


def split_share(inputs: Any, rank: int, world: int, apply_padding: bool) -> Any:
    """Give rank's share of ``inputs``; see ``PartialState.split_between_processes``.

    Raises
    ------
    ValueError
        When the values of a dict differ in length.
    """
    if world == 1:
        return inputs
    if isinstance(inputs, dict):
        lengths = {key: len(value) for key, value in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"[split_between_processes] the values differ in length: got {lengths}"
            )
        return {k: split_share(v, rank, world, apply_padding) for k, v in inputs.items()}
    each, extra = divmod(len(inputs), world)
    start = rank * each + min(rank, extra)
    stop = start + each + (1 if rank < extra else 0)
    share = inputs[start:stop]
    missing = (each + (1 if extra else 0)) - (stop - start)
    if not apply_padding or missing == 0 or len(inputs) == 0:
        return share
    if isinstance(inputs, (list, tuple)):
        return share + inputs[-1:] * missing
    from .engines import engine_of_tensor

    return engine_of_tensor(inputs).cat([share, inputs[-1:]])


class AcceleratorState:
    """What one Accelerator was asked for, over the default ``PartialState``.

    Attributes
    ----------
    partial : PartialState
        The default state.
    mixed_precision : str
        ``"no"``, ``"bf16"`` or ``"fp16"``.
    """

    def __init__(self, partial: PartialState, mixed_precision: PrecisionType) -> None:
        self.partial = partial
        self._precision = mixed_precision

    @property
    def mixed_precision(self) -> str:
        """The precision of this Accelerator's models."""
        return str(self._precision)

    def __getattr__(self, name: str) -> Any:
        if name == "partial":  # not made yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.partial, name)

    def __repr__(self) -> str:
        return f"{self.partial!r}Mixed precision: {self.mixed_precision}\n"


class GradientState:
    """Where one Accelerator stands in its accumulation window, and which loader is being read."""

    def __init__(self, plugin: GradientAccumulationPlugin) -> None:
        self.plugin = plugin
        self.sync_gradients = True
        self.step = 0
        self._loaders: list[weakref.ref[DataLoaderShard]] = []

    @property
    def num_steps(self) -> int:
        """Batches per optimizer step."""
        return self.plugin.num_steps or 1

    @num_steps.setter
    def num_steps(self, steps: int) -> None:
        self.plugin = replace(self.plugin, num_steps=steps)

    @property
    def active_dataloader(self) -> DataLoaderShard | None:
        """The innermost prepared loader that is being iterated over."""
        while self._loaders:
            loader = self._loaders[-1]()
            if loader is not None:
                return loader
            self._loaders.pop()
        return None

    @property
    def in_dataloader(self) -> bool:
        """Whether a prepared loader is being iterated over."""
        return self.active_dataloader is not None

    @property
    def end_of_dataloader(self) -> bool:
        """Whether the batch given last is the loader's last one."""
        loader = self.active_dataloader
        return loader is not None and loader.end_of_dataloader

    @property
    def remainder(self) -> int:
        """Real samples in the last round of the active loader; -1 where unknown."""
        loader = self.active_dataloader
        return -1 if loader is None else loader.remainder

    def enter_loader(self, loader: DataLoaderShard) -> None:
        """Note that ``loader`` is being iterated over."""
        self._loaders.append(weakref.ref(loader))

    def leave_loader(self, loader: DataLoaderShard) -> None:
        """Note that the iteration over ``loader`` has ended."""
        for at in range(len(self._loaders) - 1, -1, -1):
            if self._loaders[at]() is loader:
                del self._loaders[at]
                return

    def next_micro_step(self) -> None:
        """Count one batch, and decide whether it ends a window."""
        if self.plugin.sync_with_dataloader and self.end_of_dataloader:
            self.step = 0
            self.sync_gradients = True
        else:
            self.step += 1
            self.sync_gradients = self.step % self.num_steps == 0
