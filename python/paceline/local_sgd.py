# SPDX-License-Identifier: Apache-2.0
"""Local SGD: every process steps by itself, and now and then all average their parameters.

Zhang, De Sa, Mitliagkas and Re, "Parallel SGD: When does averaging help?", 2016; Stich, "Local SGD
Converges Fast and Communicates Little", ICLR 2019. All parameters of one dtype are averaged by one
collective.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .engines import known_engine

if TYPE_CHECKING:
    from .accelerator import Accelerator

__all__ = ["LocalSGD"]


class LocalSGD:
    """Keeps gradients on their process, and averages the parameters every few steps.

    Optimizer state is not averaged.

    Parameters
    ----------
    accelerator : Accelerator
        Whose processes average.
    model : Module
        A prepared model.
    local_sgd_steps : int
        Steps between two averagings.
    enabled : bool
        False trains as without it.

    Raises
    ------
    ValueError
        For a number of steps below 1.

    Examples
    --------
    >>> from paceline import Accelerator, nn
    >>> from paceline.local_sgd import LocalSGD
    >>> accelerator = Accelerator()
    >>> model = accelerator.prepare(nn.Linear(2, 1))
    >>> with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=8) as local_sgd:
    ...     local_sgd.step()  # after each optimizer.step()
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, local_sgd_steps: int, enabled: bool = True
    ) -> None:
        if local_sgd_steps < 1:
            raise ValueError(
                f"[LocalSGD] local_sgd_steps: got {local_sgd_steps}, expected at least 1"
            )
        self.accelerator = accelerator
        self.model = model
        self.local_sgd_steps = local_sgd_steps
        self.enabled = enabled and accelerator.use_distributed
        self.num_steps = 0
        self._quiet: AbstractContextManager[None] | None = None

    def __enter__(self) -> LocalSGD:
        if self.enabled:
            self._quiet = self.accelerator.no_sync(self.model)
            self._quiet.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._quiet is None:
            return
        quiet, self._quiet = self._quiet, None
        try:
            if kind is None:  # after an error the other processes may not come here
                self._average()
        finally:
            quiet.__exit__(kind, value, traceback)

    def step(self) -> None:
        """Count a step, and average the parameters where that many have been taken."""
        self.num_steps += 1
        if self.enabled and self.num_steps % self.local_sgd_steps == 0:
            self._average()

    def _average(self) -> None:
        group = self.accelerator.state.partial.group
        if group is not None:
            known_engine(self.model).average_parameters(self.model, group)
