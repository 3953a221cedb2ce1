# SPDX-License-Identifier: Apache-2.0
"""The optimizer that ``prepare`` gives back: it steps only at the end of an accumulation window.

Knows optimizers by their methods.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ._trace import Kind, span

if TYPE_CHECKING:
    from .state import GradientState
    from .training.accumulation import Accumulation
    from .training.loss_scaling import LossScaling
    from .training.nonfinite import NonFiniteGuard

__all__ = ["AcceleratedOptimizer"]


class AcceleratedOptimizer:
    """An optimizer whose ``step`` and ``zero_grad`` wait for ``sync_gradients``.

    It answers to ``isinstance`` as the optimizer it holds, so that schedulers take it; every
    other attribute is that optimizer's.

    ``zero_grad`` may stand before the backward pass or after the step: gradients that a window
    has gathered and no step has used are never dropped.

    Parameters
    ----------
    optimizer : Optimizer
        The script's optimizer.
    gradient_state : GradientState
        Of the Accelerator that prepares it.
    accumulation : Accumulation, optional
        Where its batches stand in their windows.
    scaling : LossScaling, optional
        For fp16.
    guard : NonFiniteGuard, optional
        Looks at the gradients of each step.
    """

    def __init__(
        self,
        optimizer: Any,
        gradient_state: GradientState,
        *,
        accumulation: Accumulation | None = None,
        scaling: LossScaling | None = None,
        guard: NonFiniteGuard | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.gradient_state = gradient_state
        self._accumulation = accumulation
        self._scaling = scaling
        self._guard = guard
        self._skipped = False
        self._dirty = False  # stepped, and the gradients it used are still there
        self._stepped_at = 0  # number of the batch
        self._asked: Any = None  # the function that `_takes_set_to_none` was asked about last
        self._takes = False

    @property
    def __class__(self) -> type:
        return type(self.__dict__.get("optimizer", self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("[AcceleratedOptimizer] the class cannot be changed")

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"AcceleratedOptimizer({self.optimizer!r})"

    @property
    def param_groups(self) -> Any:
        """The optimizer's parameter groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The optimizer's state per parameter."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> Any:
        """The optimizer's default settings."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: Any) -> None:
        self.optimizer.defaults = defaults

    @property
    def scaler(self) -> Any:
        """The gradient scaler; None without fp16."""
        return None if self._scaling is None else self._scaling.scaler

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last step was left out for gradients that were not finite."""
        return self._skipped

    def step(self, closure: Any = None) -> Any:
        """Take a step, unless gradients are still being accumulated or are not finite.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients again; not with fp16.

        Returns
        -------
        object
            What the optimizer's own step gave; None where there was none.
        """
        if not self.gradient_state.sync_gradients:
            return None
        self._dirty = True
        self._stepped_at = 0 if self._accumulation is None else self._accumulation.batch
        with span(Kind.OPTIMIZER, "step"):
            return self._step(() if closure is None else (closure,))

    def _step(self, args: tuple[Any, ...]) -> Any:
        if self._scaling is not None:
            result, self._skipped = self._scaling.step(self.optimizer, args)
            return result
        guard = self._guard
        if guard is None:
            return self.optimizer.step(*args)
        self._skipped = guard.refuses(self.optimizer)
        if self._skipped:
            return None
        result = self.optimizer.step(*args)
        guard.after_step(self.optimizer)
        return result

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Drop the gradients, unless a step is still to come from them.

        Parameters
        ----------
        set_to_none : bool, optional
            False sets them to zero instead; None means True.

        Raises
        ------
        ValueError
            When it is given to an optimizer that does not take it.
        """
        if self._may_drop():
            self._dirty = False
            with span(Kind.OPTIMIZER, "zero_grad"):
                self._drop(set_to_none)

    def _may_drop(self) -> bool:
        window = self._accumulation
        sync = self.gradient_state.sync_gradients
        if window is None or not window.inside:
            return sync
        if window.backward_seen or self._stepped_at == window.batch:
            return sync
        # Before the backward pass of this batch: only what the last step has left behind goes.
        return window.position == 1 and (sync or self._dirty)

    def _drop(self, set_to_none: bool | None) -> None:
        if self._takes_set_to_none():
            self.optimizer.zero_grad(set_to_none=set_to_none is not False)
        elif set_to_none is None:
            self.optimizer.zero_grad()
        else:
            raise ValueError(
                "[AcceleratedOptimizer] `set_to_none` for Optimizer.zero_grad is not supported by "
                f"this optimizer: got {type(self.optimizer).__name__}; leave it out"
            )

    def _takes_set_to_none(self) -> bool:
        # A signature takes 20 us to read, and this is asked at every step.
        method = self.optimizer.zero_grad
        function = getattr(method, "__func__", method)
        if function is not self._asked:
            self._takes = "set_to_none" in inspect.signature(method).parameters
            self._asked = function
        return self._takes

    def train(self) -> None:
        """Put an optimizer that has modes (schedule-free ones) into training mode."""
        mode = getattr(self.optimizer, "train", None)
        if callable(mode):
            mode()

    def eval(self) -> None:
        """Put an optimizer that has modes into evaluation mode."""
        mode = getattr(self.optimizer, "eval", None)
        if callable(mode):
            mode()

    def state_dict(self) -> Any:
        """Give the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a state."""
        self.optimizer.load_state_dict(state_dict)
