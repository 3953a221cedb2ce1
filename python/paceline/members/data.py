# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that have to do with data loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..data_loader import (
    DataLoaderShard,
    SkippedLoader,
    prepare_data_loader,
    skip_first_batches,
)
from ..engines import known_engine
from .base import Members

__all__ = ["DataMembers"]


class DataMembers(Members):
    """Base of ``Accelerator``: sharing out data loaders."""

    @property
    def split_batches(self) -> bool:
        """Whether a loader's batch size is that of all processes together."""
        return self._settings.data.split_batches

    @property
    def even_batches(self) -> bool:
        """Whether the last round is completed by repeating samples."""
        return self._settings.data.even_batches

    @even_batches.setter
    def even_batches(self, even_batches: bool) -> None:
        data = replace(self._settings.data, even_batches=even_batches)
        self._settings = replace(self._settings, data=data)

    def prepare_data_loader(
        self,
        data_loader: Any,
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Callable[..., Any] | None = None,
    ) -> Any:
        """Prepare one data loader; see ``DataLoaderShard``.

        Parameters
        ----------
        data_loader : DataLoader
            The loader; one that is prepared comes back as it is.
        device_placement : bool, optional
            Whether to put batches on ``device``.
        slice_fn_for_dispatch : callable, optional
            Where rank 0 reads for all: cuts a rank's part of the whole batch, called as
            ``slice_fn(batch, slice, process_index=..., num_processes=...)``.
        """
        if type(data_loader) in (DataLoaderShard, SkippedLoader):
            return data_loader
        prepared = prepare_data_loader(
            data_loader,
            known_engine(data_loader),
            self._group,
            self._settings.data,
            device=self.device if self._places(device_placement) else None,
            gradient_state=self.gradient_state,
            slice_fn_for_dispatch=slice_fn_for_dispatch,
            rng_types=self._settings.rng_types,
        )
        self._dataloaders.append(prepared)
        return prepared

    def skip_first_batches(self, dataloader: Any, num_batches: int = 0) -> Any:
        """Give a loader without its first batches; see ``paceline.skip_first_batches``."""
        return skip_first_batches(dataloader, num_batches)
