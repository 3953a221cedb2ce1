# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator by which ranks tell one another what they are about to do."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from .base import Members

if TYPE_CHECKING:
    from ..training.accumulation import Accumulation
    from ..training.loss_scaling import LossScaling

__all__ = ["CoordinationMembers"]


class CoordinationMembers(Members):
    """Base of ``Accelerator``: triggers, and training on uneven inputs."""

    _accumulation: Accumulation
    _scaling: LossScaling | None
    _triggered = False

    def set_trigger(self) -> None:
        """Raise a flag on this process, which ``check_trigger`` tells all others of.

        Waits for nobody.
        """
        self._triggered = True

    def check_trigger(self) -> bool:
        """Tell whether any process has raised its flag since the last time, and lower them all.

        Call it on all processes.

        Examples
        --------
        >>> accelerator = Accelerator()
        >>> accelerator.set_trigger()
        >>> accelerator.check_trigger(), accelerator.check_trigger()
        (True, False)
        """
        raised = self._triggered
        if self._group is not None:
            flags = array("q", [0] * self._group.world_size)
            self._group.all_gather(flags, array("q", [raised]), depth=frames_of_ours())
            raised = any(flags)
        if raised:
            self._triggered = False
        return raised

    @contextmanager
    def join_uneven_inputs(
        self, joinables: Sequence[Any], even_batches: bool | None = None
    ) -> Iterator[None]:
        """Let processes run out of batches at different times, on any device.

        One that has left the loop gives zeros to the gradient reductions of the others, which are
        divided by the number of all processes as ever. When the last one has left, its model,
        optimizers and schedulers become those of all. With even batches the block does nothing.

        Inside the block a model is run once for each backward pass, ``accumulate`` is around the
        batch if it is used, and other collectives of the script have no place.

        Parameters
        ----------
        joinables : list of Module
            The prepared models that are trained inside.
        even_batches : bool, optional
            For the loaders that an iteration inside begins; by default as configured.

        Raises
        ------
        ValueError
            For something that is not a prepared model, or a block inside another one.
        """
        if self._group is None:
            yield
            return
        even = self._settings.data.even_batches if even_batches is None else even_batches
        changed = [] if even_batches is None else self._override_even(even_batches)
        try:
            if even:
                yield
            else:
                with self._models.joined(joinables, self._stepping_parts):
                    yield
        finally:
            for loader in changed:
                loader.override_even_batches(self._settings.data.even_batches)

    def _override_even(self, even: bool) -> list[Any]:
        """Tell all loaders, and give those that listen."""
        told = [(loader, loader.override_even_batches(even)) for loader in self._dataloaders]
        if not all(listens for _, listens in told):
            warnings.warn(
                "Overriding even_batches is only supported for map-style datasets, yet some "
                "dataloaders given were iterable",
                stacklevel=4,
            )
        return [loader for loader, listens in told if listens]

    def _stepping_parts(self) -> list[Any]:
        """Give what a training step changes besides models."""
        scaler = [] if self._scaling is None else [self._scaling.scaler]
        return [self._accumulation, *self._optimizers, *self._schedulers, *scaler]
