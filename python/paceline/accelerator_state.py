# SPDX-License-Identifier: Apache-2.0
"""What each Accelerator has of its own: the precision it was asked for, and its window.

They live as long as their Accelerator. Called without arguments, as scripts do, the classes give
the state of the first Accelerator that is still there.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from .utils.dataclasses import GradientAccumulationPlugin, PrecisionType

if TYPE_CHECKING:
    from .data_loader import DataLoaderShard
    from .state import PartialState

__all__ = ["AcceleratorState", "GradientState"]


class _OneEach:
    """What each Accelerator has one of; called without arguments, that of the first one alive.

    Only weak references are kept: a state goes with its Accelerator.
    """

    _alive: ClassVar[list[weakref.ref[Any]]]

    def __init_subclass__(cls) -> None:
        cls._alive = []

    @classmethod
    def _first(cls) -> Any:
        cls._alive[:] = [ref for ref in cls._alive if ref() is not None]
        return cls._alive[0]() if cls._alive else None

    @classmethod
    def _reset_state(cls) -> None:
        """Forget the states made so far (for tests)."""
        cls._alive.clear()

    def __copy__(self) -> Self:
        # What holds a state and is copied, such as an optimizer, stays with its Accelerator.
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # another process has its own

    @property
    def initialized(self) -> bool:
        """Whether this state has been made."""
        return True


class AcceleratorState(_OneEach):
    """What one Accelerator was asked for, over the default ``PartialState``.

    Without arguments: that of the first Accelerator that is still there.

    Attributes
    ----------
    partial : PartialState
        The default state; its members are also members of this.
    mixed_precision : str
        ``"no"``, ``"bf16"`` or ``"fp16"``.

    Raises
    ------
    ValueError
        When there is no Accelerator yet.
    """

    partial: PartialState

    #: Of Accelerate's, always None here.
    deepspeed_plugin = None
    fsdp_plugin = None
    torch_tp_plugin = None
    megatron_lm_plugin = None
    parallelism_config = None
    device_mesh = None
    dynamo_plugin = None
    is_fsdp2 = False

    def __new__(
        cls, partial: PartialState | None = None, mixed_precision: PrecisionType = PrecisionType.NO
    ) -> AcceleratorState:
        """Make the state of an Accelerator, or give that of the first."""
        if partial is None:
            first = cls._first()
            if first is None:
                raise ValueError(
                    "[AcceleratorState] there is no Accelerator yet: call Accelerator() first"
                )
            return cast("AcceleratorState", first)
        state = super().__new__(cls)
        state.partial = partial
        state._precision = mixed_precision
        cls._alive.append(weakref.ref(state))
        return state

    _precision: PrecisionType

    @classmethod
    def _reset_state(cls, reset_partial_state: bool = False) -> None:
        """Forget the states made so far; and the default one, without closing its group."""
        super()._reset_state()
        if reset_partial_state:
            from .state import PartialState

            PartialState._reset_state()

    @property
    def mixed_precision(self) -> str:
        """The precision of this Accelerator's models."""
        return str(self._precision)

    def __getattr__(self, name: str) -> Any:
        if name == "partial":  # not made yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.partial, name)

    def __repr__(self) -> str:
        return f"{self.partial!r}Mixed precision type: {self.mixed_precision}\n"


class GradientState(_OneEach):
    """Where one Accelerator stands in its accumulation window, and which loader is being read.

    Without arguments: that of the first Accelerator that is still there, or a new one.
    """

    plugin: GradientAccumulationPlugin
    sync_gradients: bool
    step: int
    _loaders: list[weakref.ref[DataLoaderShard]]

    #: Of Accelerate's, for TPUs.
    is_xla_gradients_synced = False

    def __new__(
        cls, gradient_accumulation_plugin: GradientAccumulationPlugin | None = None
    ) -> GradientState:
        """Make the state of an Accelerator, or give that of the first."""
        plugin = gradient_accumulation_plugin
        if plugin is None:
            first = cls._first()
            if first is not None:
                return cast("GradientState", first)
        state = super().__new__(cls)
        state.plugin = plugin or GradientAccumulationPlugin(num_steps=1)
        state.sync_gradients = True
        state.step = 0
        state._loaders = []
        if plugin is not None:
            cls._alive.append(weakref.ref(state))
        return state

    def __repr__(self) -> str:
        return (
            f"Sync Gradients: {self.sync_gradients}\n"
            f"At end of current dataloader: {self.end_of_dataloader}\n"
            f"Extra samples added: {self.remainder}\n"
            f"Gradient accumulation plugin: {self.plugin.to_kwargs()}\n"
        )

    @property
    def plugin_kwargs(self) -> dict[str, Any]:
        """The fields of the plugin that are not the default."""
        return self.plugin.to_kwargs()

    @property
    def adjust_scheduler(self) -> bool:
        """Whether a prepared scheduler counts the calls that accumulation skips."""
        return self.plugin.adjust_scheduler

    @property
    def sync_with_dataloader(self) -> bool:
        """Whether the last batch of a loader ends a window."""
        return self.plugin.sync_with_dataloader

    @property
    def dataloader_references(self) -> list[DataLoaderShard | None]:
        """The loaders that are being iterated over, innermost last; None comes first."""
        return [None, *(loader for ref in self._loaders if (loader := ref()) is not None)]

    def _set_sync_gradients(self, sync_gradients: bool) -> None:
        self.sync_gradients = sync_gradients

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
