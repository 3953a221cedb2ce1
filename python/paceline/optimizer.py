# SPDX-License-Identifier: Apache-2.0
"""The optimizer that ``prepare`` gives back: it steps only at the end of an accumulation window.

Knows optimizers by their methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .state import GradientState

__all__ = ["AcceleratedOptimizer"]


class AcceleratedOptimizer:
    """An optimizer whose ``step`` and ``zero_grad`` wait for ``sync_gradients``.

    It answers to ``isinstance`` as the optimizer it holds, so that schedulers take it; every
    other attribute is that optimizer's.

    Parameters
    ----------
    optimizer : Optimizer
        The script's optimizer.
    gradient_state : GradientState
        Of the Accelerator that prepares it.
    """

    def __init__(self, optimizer: Any, gradient_state: GradientState) -> None:
        self.optimizer = optimizer
        self.gradient_state = gradient_state

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
    def step_was_skipped(self) -> bool:
        """Whether the last step was skipped for gradients that overflowed: never without fp16."""
        return False

    def step(self, closure: Any = None) -> Any:
        """Take a step, unless gradients are still being accumulated."""
        if not self.gradient_state.sync_gradients:
            return None
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, unless they are still being accumulated."""
        if self.gradient_state.sync_gradients:
            self.optimizer.zero_grad(set_to_none=set_to_none)
