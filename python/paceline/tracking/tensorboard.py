# SPDX-License-Identifier: Apache-2.0
"""The tracker ``tensorboard``, over whichever writer of event files is installed.

tensorboardX needs nothing but itself and is the extra ``paceline[tensorboard]``. Where a script
has loaded PyTorch and tensorboard is installed, PyTorch's writer is used, as Accelerate does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .base import GeneralTracker, on_main_process
from .values import flat, plain

__all__ = ["TensorBoardTracker", "writer_class"]


def _of_torch() -> bool:
    return find_spec("torch") is not None and find_spec("tensorboard") is not None


def writer_class() -> Any:
    """Give the ``SummaryWriter`` to use.

    Raises
    ------
    ImportError
        When there is none.
    """
    modules = ["tensorboardX"] if find_spec("tensorboardX") is not None else []
    if _of_torch():
        modules.insert(0 if "torch" in sys.modules else len(modules), "torch.utils.tensorboard")
    if modules:
        return import_module(modules[0]).SummaryWriter
    raise ImportError(
        "[tensorboard] no writer of TensorBoard's files is installed: "
        "pip install 'paceline[tensorboard]'"
    )


class TensorBoardTracker(GeneralTracker):
    """Writes event files and ``hparams.yml`` below ``<logging_dir>/<project>``.

    Parameters
    ----------
    run_name : str
        Name of the folder below ``logging_dir``.
    logging_dir : path
        Where runs are kept.
    **kwargs
        For ``SummaryWriter``.
    """

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__()
        self.run_name = run_name
        self.logging_dir = os.path.join(os.fspath(logging_dir), run_name)
        self.init_kwargs = kwargs
        self.writer: Any = None

    @staticmethod
    def is_available() -> bool:
        """Tell whether a writer is installed."""
        return find_spec("tensorboardX") is not None or _of_torch()

    @property
    def tracker(self) -> Any:
        """The ``SummaryWriter``."""
        return self.writer

    @on_main_process
    def start(self) -> None:
        """Open the event file."""
        self.writer = writer_class()(self.logging_dir, **self.init_kwargs)

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Show the values as TensorBoard's hyperparameters, and write them to ``hparams.yml``."""
        import yaml

        shown = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in _flat_config(values).items()
        }
        self.writer.add_hparams(shown, metric_dict={})
        self.writer.flush()
        folder = os.path.join(self.logging_dir, str(time.time()))
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "hparams.yml"), "w", encoding="utf-8") as file:
            yaml.safe_dump(_yaml_value(values), file)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Write numbers as scalars, text as text, a dict as scalars in one picture.

        ``kwargs`` go to ``add_scalar``, ``add_text`` or ``add_scalars``.
        """
        for key, value in values.items():
            if isinstance(value, Mapping):
                scalars = {k: v for k, v in flat(value).items() if not isinstance(v, str)}
                self.writer.add_scalars(key, scalars, global_step=step, **kwargs)
                continue
            number = plain(key, value)
            if isinstance(number, str):
                self.writer.add_text(key, number, global_step=step, **kwargs)
            elif number is not None:
                self.writer.add_scalar(key, number, global_step=step, **kwargs)
        self.writer.flush()

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Write batches of images.

        Parameters
        ----------
        values : dict
            By name, an array (N, C, H, W), or as ``dataformats`` says.
        step : int, optional
            The step that they belong to.
        **kwargs
            For ``add_images``.
        """
        for key, images in values.items():
            self.writer.add_images(key, images, global_step=step, **kwargs)

    @on_main_process
    def finish(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


def _flat_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat_config(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _yaml_value(value: Any) -> Any:
    """Give what any YAML reader understands; other objects as their text."""
    if isinstance(value, Mapping):
        return {str(key): _yaml_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_yaml_value(item) for item in value]
    # type(): YAML has no subclasses, and an enum or a path says what it is as text.
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
