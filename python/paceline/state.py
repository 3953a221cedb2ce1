# SPDX-License-Identifier: Apache-2.0
"""Who this process is: default process group, and each Accelerator's own state.

``PartialState()`` is the one default state of a process; it holds the default process group.
Everything else is kept in the Accelerator that made it, so that two of them do not disturb each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from ._call_site import frames_of_ours
from .accelerator_state import AcceleratorState, GradientState
from .announce import say_process
from .environment import Environment, read_environment
from .sharing import split_share
from .utils.dataclasses import DistributedType, InitProcessGroupKwargs

if TYPE_CHECKING:
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
    **kwargs : object
        The fields of ``InitProcessGroupKwargs``.

    Attributes
    ----------
    device : device
        Where this process computes.
    backend : str or None
        How its ranks reach each other; None when it is alone.
    debug : bool
        Whether ``ACCELERATE_DEBUG_MODE`` is set. It changes nothing: collectives always compare
        what the ranks bring.
    fork_launched : bool
        Whether ``FORK_LAUNCHED`` is set.

    Raises
    ------
    ValueError
        When the state exists already, and was made with another timeout or on another device.
    """

    _default: PartialState | None = None
    _uses: ClassVar[list[Callable[[ProcessGroup], None]]] = []  # told of the group, repeatedly

    group: ProcessGroup | None
    backend: str | None
    distributed_type: DistributedType
    num_processes: int
    process_index: int
    local_process_index: int
    debug: bool
    fork_launched: bool

    def __new__(cls, cpu: bool = False, **kwargs: Any) -> PartialState:
        """Give the default state, made at the first call."""
        default = cls._default
        init = InitProcessGroupKwargs(**kwargs)
        if default is None:
            default = super().__new__(cls)
            default._form(read_environment(), cpu, init.timeout)
            PartialState._default = default
        else:
            default._check_late(cpu, init.timeout)
        if default.group is not None:
            for use in cls._uses:
                use(default.group)
        return default

    def _check_late(self, cpu: bool, timeout: timedelta | None) -> None:
        if timeout is not None and timeout != self._timeout:
            raise ValueError(
                "[PartialState] the process group exists already, so its timeout cannot be set: "
                f"got {timeout}; pass InitProcessGroupKwargs to the first Accelerator()"
            )
        if cpu and not str(self.device).startswith("cpu"):
            raise ValueError(
                f"[PartialState] cpu=True comes too late: this process computes on {self.device} "
                "already; pass it to the first Accelerator() or PartialState()"
            )

    def _form(self, env: Environment, cpu: bool, timeout: timedelta | None) -> None:
        self._timeout = timeout
        self._cpu = cpu or bool(env.use_cpu)
        self.debug, self.fork_launched = env.debug, env.fork_launched
        self.group = None
        self.backend = None
        self.process_index, self.num_processes = env.rank, env.world_size
        self.local_process_index = env.local_rank
        self._chosen_device: Any = None
        self._device_from_engine = True
        self.distributed_type = DistributedType.NO
        if env.world_size > 1:
            from . import distributed

            if not distributed.is_initialized():
                if timeout is None:
                    distributed.init_process_group()
                else:
                    distributed.init_process_group(timeout=timeout)
            self.group = distributed.default_group()
            on_cpu = str(self.device).startswith("cpu")
            self.backend = distributed.get_backend() if on_cpu else "nccl"
            self.distributed_type = (
                DistributedType.MULTI_CPU if on_cpu else DistributedType.MULTI_GPU
            )
        say_process(self.process_index, self.num_processes, self.device)

    def __copy__(self) -> PartialState:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PartialState:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PartialState, ()  # another process has its own

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

    def destroy_process_group(self, group: ProcessGroup | None = None) -> None:
        """Leave a process group, by default that of this state.

        The next ``PartialState()`` forms a new one.
        """
        from . import distributed

        if group is not None and group is not self.group:
            distributed.destroy_process_group(group)
            return
        if self.group is not None:
            distributed.destroy_process_group()
            self.group = None
        if PartialState._default is self:
            PartialState._default = None

    @property
    def default_device(self) -> Any:
        """The device that this process uses where nobody chose one."""
        from .engines import loaded_engines

        return loaded_engines()[-1].device(self.local_process_index, False)

    def set_device(self) -> None:
        """Choose ``device`` again if it was set to None."""
        if self.device is None:
            self._device_from_engine = True

    @property
    def device(self) -> Any:
        """Where this process computes, as the tensor library that the program has loaded says it.

        PyTorch's device once that is imported, for it takes no other; ours takes either.
        """
        from .engines import loaded_engines

        if not self._device_from_engine:
            return self._chosen_device
        return loaded_engines()[-1].device(self.local_process_index, self._cpu)

    @device.setter
    def device(self, device: Any) -> None:
        self._chosen_device = device
        self._device_from_engine = False

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
        """Make a function run on one rank only; also usable as ``on_process(process_index=1)``.

        A process that is alone runs it whatever the index.
        """
        if function is None:
            return lambda real: self.on_process(real, process_index)
        alone = not self.use_distributed
        return self._only_if(lambda: alone or self.process_index == process_index, function)

    def on_local_process(
        self, function: Callable[P, T] | None = None, local_process_index: int | None = None
    ) -> Any:
        """Make a function run on one rank of each machine only; see ``on_process``."""
        if function is None:
            return lambda real: self.on_local_process(real, local_process_index)
        at, alone = local_process_index, not self.use_distributed
        return self._only_if(lambda: alone or self.local_process_index == at, function)

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
