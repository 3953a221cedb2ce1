# SPDX-License-Identifier: Apache-2.0
"""Accumulation windows: how many batches make one optimizer step, and what a loss is divided by.

A window is ``num_steps`` batches long; the one at the end of a loader may be shorter, and its
gradients are then divided by its true length. Where the loader knows how many batches are to come,
each loss is divided by that from the start. Where it does not (a stream), losses are divided by
``num_steps``, and what was accumulated is scaled up when the last batch is handed out.

Each set of models counts for itself, so ``accumulate(a)`` and ``accumulate(b)`` in turn are two
windows. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..state import GradientState

__all__ = ["Accumulation"]


class Accumulation:
    """Where the batches of one Accelerator stand in their windows.

    Parameters
    ----------
    state : GradientState
        Gets ``step`` and ``sync_gradients``; has the plugin and the loader that is being read.

    Attributes
    ----------
    position : int
        Number of the batch in its window, from 1; 0 before the first ``accumulate``.
    batch : int
        Number of batches counted so far.
    backward_seen : bool
        Whether a backward pass has run for this batch.
    """

    def __init__(self, state: GradientState) -> None:
        self.position = 0
        self.batch = 0
        self.backward_seen = False
        self._state = state
        self._depth = 0
        self._divisor = 1
        self._models: tuple[int, ...] | None = None  # whose window `state.step` counts
        self._steps: dict[tuple[int, ...], int] = {}  # of the other windows
        self._divisors: dict[tuple[int, ...], int] = {}

    @property
    def inside(self) -> bool:
        """Whether an ``accumulate`` block is open."""
        return self._depth > 0

    @property
    def begins_window(self) -> bool:
        """Whether a backward pass now is the first of a window."""
        return not self.inside or (self.position == 1 and not self.backward_seen)

    @property
    def divisor(self) -> int:
        """What a loss is divided by."""
        return self._divisor if self.inside else self._state.num_steps

    def enter(self, models: Sequence[Any], *, may_sync: bool = True) -> float:
        """Count a batch for these models; a block inside another one counts nothing.

        Parameters
        ----------
        models : sequence
            Those that ``accumulate`` was given.
        may_sync : bool
            False keeps the window open though it would end here (``join_uneven_inputs``).

        Returns
        -------
        float
            What the gradients accumulated in this window so far are to be multiplied by.
        """
        self._depth += 1
        if self._depth > 1:
            return 1.0
        key = tuple(id(model) for model in models)
        self._turn_to(key)
        state = self._state
        self.position = state.step % state.num_steps + 1
        planned = self._planned(state.num_steps)
        state.next_micro_step()
        self.batch += 1
        self.backward_seen = False
        if state.sync_gradients and not may_sync:
            state.sync_gradients = False
            state.step = self.position
        before = self._divisors.get(key, planned) if self.position > 1 else planned
        self._divisors[key] = self._divisor = planned
        return before / planned

    def leave(self) -> None:
        """End the block."""
        self._depth -= 1

    def ends_here(self, models: Sequence[Any]) -> bool:
        """Whether ``enter`` for these models would end their window."""
        state = self._state
        key = tuple(id(model) for model in models)
        step = state.step if self._models in (None, key) else self._steps.get(key, 0)
        at_end = state.plugin.sync_with_dataloader and state.end_of_dataloader
        return at_end or (step + 1) % state.num_steps == 0

    def reset(self) -> None:
        """Forget all windows."""
        self.position = 0
        self._models = None
        self._steps.clear()
        self._divisors.clear()
        self._state.step = 0

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether gradients of a window that has not ended are kept."""
        return not self._state.sync_gradients or any(self._steps.values())

    def state_dict(self, models: Sequence[Any] = ()) -> dict[str, Any]:
        """Give where all windows stand, as JSON; models by their number in ``models``."""
        numbers = {id(model): at for at, model in enumerate(models)}

        def named(key: tuple[int, ...]) -> list[int]:
            return [numbers.get(one, -1) for one in key]

        return {
            "position": self.position,
            "batch": self.batch,
            "step": self._state.step,
            "sync_gradients": self._state.sync_gradients,
            "current": None if self._models is None else named(self._models),
            "steps": [[named(key), step] for key, step in self._steps.items()],
            "divisors": [[named(key), divisor] for key, divisor in self._divisors.items()],
        }

    def load_state_dict(self, state: dict[str, Any], models: Sequence[Any] = ()) -> None:
        """Go on from what ``state_dict`` gave, with these models in the place of those."""

        def key(numbers: Sequence[int]) -> tuple[int, ...]:
            return tuple(id(models[at]) if 0 <= at < len(models) else -1 for at in numbers)

        self.position, self.batch = state["position"], state["batch"]
        self._state.step = state["step"]
        self._state.sync_gradients = state["sync_gradients"]
        self._models = None if state["current"] is None else key(state["current"])
        self._steps = {key(numbers): step for numbers, step in state["steps"]}
        self._divisors = {key(numbers): divisor for numbers, divisor in state["divisors"]}

    def _turn_to(self, key: tuple[int, ...]) -> None:
        if self._models is not None and self._models != key:
            self._steps[self._models] = self._state.step
            self._state.step = self._steps.pop(key, 0)
        self._models = key

    def _planned(self, num_steps: int) -> int:
        plugin = self._state.plugin
        loader = self._state.active_dataloader
        if loader is None or not (plugin.scale_last_window and plugin.sync_with_dataloader):
            return num_steps
        if loader.end_of_dataloader:
            return self.position
        left: int | None = getattr(loader, "batches_left", None)
        return num_steps if left is None else min(num_steps, self.position + left)
