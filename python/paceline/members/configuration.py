# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that tell what it was asked for.

Its settings are frozen; what changes while it runs, such as the number of the next checkpoint,
is kept by the Accelerator itself.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..utils.dataclasses import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    ProfileKwargs,
)
from .base import Members

__all__ = ["ConfigurationMembers"]


class ConfigurationMembers(Members):
    """Base of ``Accelerator``: its settings, by name."""

    @property
    def project_dir(self) -> str | os.PathLike[str] | None:
        """Folder of checkpoints."""
        return self._settings.project.project_dir

    @property
    def logging_dir(self) -> str | os.PathLike[str] | None:
        """Folder of the trackers' logs."""
        return self._settings.project.logging_dir

    @property
    def save_iteration(self) -> int:
        """Number of the next checkpoint that ``save_state()`` names by itself."""
        return self._save_iteration

    @save_iteration.setter
    def save_iteration(self, iteration: int) -> None:
        if type(iteration) is not int or iteration < 0:
            raise ValueError(
                f"[save_iteration] got {iteration!r}, expected an integer of at least 0"
            )
        self._save_iteration = iteration

    @property
    def step(self) -> int:
        """Batches of the current accumulation window so far."""
        return self.gradient_state.step

    @step.setter
    def step(self, step: int) -> None:
        self.gradient_state.step = step

    @property
    def native_amp(self) -> bool:
        """Whether prepared models compute in a shorter dtype."""
        return self.state.mixed_precision != "no"

    @property
    def device_placement(self) -> bool:
        """Whether models and batches are moved to ``device``."""
        return self._settings.device_placement

    @property
    def step_scheduler_with_optimizer(self) -> bool:
        """Whether a prepared scheduler steps only when its optimizer did."""
        return self._settings.step_scheduler_with_optimizer

    @property
    def dataloader_config(self) -> DataLoaderConfiguration:
        """How data loaders are shared out."""
        return replace(self._settings.data)

    @property
    def dispatch_batches(self) -> bool | None:
        """Whether rank 0 reads for all; None leaves it to the kind of data."""
        return self._settings.data.dispatch_batches

    @property
    def use_seedable_sampler(self) -> bool:
        """Whether a shuffle depends on seed and epoch only."""
        return self._settings.data.use_seedable_sampler

    @property
    def use_stateful_dataloader(self) -> bool:
        """Whether stateful loaders were asked for; here they always are."""
        return self._settings.data.use_stateful_dataloader

    @property
    def non_blocking(self) -> bool:
        """Whether copies to a device do not wait."""
        return self._settings.data.non_blocking

    @property
    def ddp_handler(self) -> DistributedDataParallelKwargs:
        """How gradients are synchronised."""
        return self._settings.ddp

    @property
    def init_handler(self) -> InitProcessGroupKwargs:
        """How the process group was formed."""
        return self._settings.init

    @property
    def autocast_handler(self) -> AutocastKwargs:
        """How ``autocast`` computes."""
        return self._settings.autocast

    @property
    def scaler_handler(self) -> GradScalerKwargs:
        """How fp16 losses are scaled."""
        return self._settings.scaler

    @property
    def profile_handler(self) -> ProfileKwargs:
        """What ``profile`` records."""
        return self._settings.profile

    @property
    def rng_types(self) -> list[str]:
        """Random generators whose state rank 0 hands to all at the start of each epoch."""
        return list(self._settings.rng_types)

    def describe(self) -> str:
        """Give every setting's value and where it came from, one a line.

        Returns
        -------
        str
            Lines ``name = value  (source)``.
        """
        many = self._settings.sources.get("num_processes", "default")
        rows = [("num_processes", self._partial.num_processes, many), *self._settings.rows()]
        widths = [min(32, max(len(str(row[at])) for row in rows)) for at in (0, 1)]
        return "\n".join(
            f"{name:<{widths[0]}} = {value!s:<{widths[1]}}  ({source})"
            for name, value, source in rows
        )
