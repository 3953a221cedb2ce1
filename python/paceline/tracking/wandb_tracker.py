# SPDX-License-Identifier: Apache-2.0
"""The tracker ``wandb``: Weights & Biases, loaded when a run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .base import GeneralTracker, on_main_process
from .values import plain

__all__ = ["WandBTracker"]


class WandBTracker(GeneralTracker):
    """Hands what is logged to ``wandb``; ``WANDB_MODE=offline`` keeps it on this machine.

    Parameters
    ----------
    run_name : str
        The project.
    **kwargs
        For ``wandb.init``.
    """

    name = "wandb"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, run_name: str, **kwargs: Any) -> None:
        super().__init__()
        self.run_name = run_name
        self.init_kwargs = kwargs
        self.run: Any = None

    @staticmethod
    def is_available() -> bool:
        """Tell whether wandb is installed."""
        return find_spec("wandb") is not None

    @property
    def tracker(self) -> Any:
        """The run."""
        return self.run

    @on_main_process
    def start(self) -> None:
        """Begin a run of the project."""
        self.run = import_module("wandb").init(project=self.run_name, **self.init_kwargs)

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Record hyperparameters as the run's config."""
        self.run.config.update(values, allow_val_change=True)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record values: numbers, tensors of one element, dicts of these, what wandb knows.

        ``kwargs`` go to ``run.log``.
        """
        self.run.log({key: _for_wandb(key, value) for key, value in values.items()}, step, **kwargs)

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record lists of images by name; ``kwargs`` go to ``run.log``."""
        image = import_module("wandb").Image
        for key, images in values.items():
            self.run.log({key: [image(one) for one in images]}, step, **kwargs)

    @on_main_process
    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a table, of columns and rows or of a data frame.

        Parameters
        ----------
        table_name : str
            Its name.
        columns : sequence of str, optional
            Names of the columns.
        data : sequence of rows, optional
            One cell for each column.
        dataframe : DataFrame, optional
            In place of both.
        step : int, optional
            The step that it belongs to.
        **kwargs
            For ``run.log``.
        """
        table = import_module("wandb").Table(columns=columns, data=data, dataframe=dataframe)
        self.run.log({table_name: table}, step, **kwargs)

    @on_main_process
    def finish(self) -> None:
        """End the run."""
        if self.run is not None:
            self.run.finish()


def _for_wandb(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _for_wandb(f"{name}/{key}", inner) for key, inner in value.items()}
    # Tensors and NumPy scalars become numbers; images, tables and histograms are wandb's own.
    return plain(name, value) if hasattr(value, "tolist") and hasattr(value, "item") else value
