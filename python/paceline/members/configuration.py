# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that tell what it was asked for.

Its settings are frozen; what changes while it runs, such as the number of the next checkpoint,
is kept by the Accelerator itself.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..utils.dataclasses import ProjectConfiguration
from .base import Members

__all__ = ["ConfigurationMembers"]


class ConfigurationMembers(Members):
    """Base of ``Accelerator``: its settings, by name."""

    _save_iteration: int

    @property
    def project_configuration(self) -> ProjectConfiguration:
        """Where this run writes; ``iteration`` is the current one."""
        return replace(self._settings.project, iteration=self._save_iteration)

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
        rows = self._settings.rows()
        widths = [max(len(str(row[at])) for row in rows) for at in (0, 1)]
        return "\n".join(
            f"{name:<{widths[0]}} = {value!s:<{widths[1]}}  ({source})"
            for name, value, source in rows
        )
