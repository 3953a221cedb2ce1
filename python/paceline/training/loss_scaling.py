# SPDX-License-Identifier: Apache-2.0
"""One gradient scaler for all optimizers of an Accelerator.

``torch.amp.GradScaler.update`` belongs at the end of an iteration, after the steps of all
optimizers: a factor that changed between two of them would unscale the second one's gradients
wrongly. So it is called when every optimizer has stepped, or when the next window begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..optimizer import AcceleratedOptimizer
    from .grad_scaler import GradScaler

__all__ = ["LossScaling"]


class LossScaling:
    """Scales losses and steps optimizers through one scaler.

    Parameters
    ----------
    scaler : GradScaler
        That of the Accelerator.
    optimizers : list of AcceleratedOptimizer
        All of them; the list may grow.
    """

    def __init__(self, scaler: GradScaler, optimizers: list[AcceleratedOptimizer]) -> None:
        self.scaler = scaler
        self._optimizers = optimizers
        self._stepped: set[int] = set()

    def scale(self, loss: Any, window_begins: bool) -> Any:
        """Give the scaled loss."""
        if window_begins:
            self._update()
        return self.scaler.scale(loss)

    def unscale(self, optimizers: Iterable[Any]) -> None:
        """Unscale the gradients of optimizers, those that are not yet."""
        for optimizer in optimizers:
            if not self.scaler.is_unscaled(optimizer):
                self.scaler.unscale_(optimizer)

    def step(self, optimizer: Any, args: tuple[Any, ...]) -> tuple[Any, bool]:
        """Step an optimizer if its gradients are finite.

        Returns
        -------
        object, bool
            What the step gave, and whether it was left out.
        """
        if id(optimizer) in self._stepped:
            self._update()
        result = self.scaler.step(optimizer, *args)
        skipped = self.scaler.found_inf(optimizer)
        self._stepped.add(id(optimizer))
        if all(id(prepared.optimizer) in self._stepped for prepared in self._optimizers):
            self._update()
        return result, skipped

    def forget(self) -> None:
        """End the iteration, for the optimizers will be gone."""
        self._update()

    def _update(self) -> None:
        if self._stepped:
            self._stepped.clear()
            self.scaler.update()
