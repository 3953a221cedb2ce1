# SPDX-License-Identifier: Apache-2.0
"""What all parts of an Accelerator share: the fields that its constructor fills in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data_loader import DataLoaderShard
    from ..distributed import ProcessGroup
    from ..model import PreparedModels
    from ..optimizer import AcceleratedOptimizer
    from ..run_report import RunReport
    from ..scheduler import AcceleratedScheduler
    from ..settings import Settings
    from ..state import AcceleratorState, GradientState, PartialState
    from ..training.nonfinite import NonFiniteGuard
    from ..utils.dataclasses import ProjectConfiguration

__all__ = ["Members"]


class Members:
    """Base of the classes that hold an Accelerator's methods, one topic each.

    Attributes
    ----------
    state : AcceleratorState
        What this process is, and the precision asked for.
    gradient_state : GradientState
        Where the accumulation window stands, and which loader is being read.
    """

    state: AcceleratorState
    gradient_state: GradientState
    _settings: Settings
    _save_iteration: int
    _models: PreparedModels
    _optimizers: list[AcceleratedOptimizer]
    _schedulers: list[AcceleratedScheduler]
    _dataloaders: list[DataLoaderShard]
    _report: RunReport | None
    _guard: NonFiniteGuard

    @property
    def _partial(self) -> PartialState:
        return self.state.partial

    @property
    def _group(self) -> ProcessGroup | None:
        return self.state.partial.group

    @property
    def device(self) -> Any:
        """Where this process computes."""
        return self._partial.device

    @property
    def project_configuration(self) -> ProjectConfiguration:
        """Where this run writes; ``iteration`` is the current one."""
        return replace(self._settings.project, iteration=self._save_iteration)

    def _places(self, device_placement: bool | None) -> bool:
        return self._settings.device_placement if device_placement is None else device_placement
