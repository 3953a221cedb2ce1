# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that write and read files. The work is in ``checkpoint/``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engines import known_engine
from ..logging import get_logger
from .base import Members

if TYPE_CHECKING:
    import pathlib

    from ..checkpoint.run import Run
    from ..nn.module import RemovableHandle
    from ..training.accumulation import Accumulation

__all__ = ["CheckpointMembers", "Registered"]

logger = get_logger(__name__)
Path = str | os.PathLike[str]


@dataclass
class Registered:
    """What a script registered for checkpoints, in its order."""

    objects: list[Any] = field(default_factory=list)
    save_hooks: dict[int, Callable[..., None]] = field(default_factory=dict)
    load_hooks: dict[int, Callable[..., None]] = field(default_factory=dict)


class CheckpointMembers(Members):
    """Base of ``Accelerator``: saving and loading."""

    _accumulation: Accumulation
    _registered: Registered
    _save_iteration: int

    @property
    def should_save_model(self) -> bool:
        """Whether this process writes models: the first of each machine."""
        return self._partial.is_local_main_process

    def save(self, obj: Any, f: Any, safe_serialization: bool = False) -> None:
        """Save an object as ``paceline.save`` does, on the main process only.

        Parameters
        ----------
        obj : object
            A state dict, or anything else that ``paceline.save`` takes.
        f : path or binary file
            Where to.
        safe_serialization : bool
            Without effect: nothing is ever pickled.
        """
        each = self._settings.project.save_on_each_node
        if self._partial.is_local_main_process if each else self._partial.is_main_process:
            from ..checkpoint.run import save_object

            save_object(obj, f)

    def get_state_dict(self, model: Any, unwrap: bool = True) -> dict[str, Any]:
        """Give a model's state dict, whole on every process.

        Parameters
        ----------
        model : Module
            Prepared or not.
        unwrap : bool
            Without effect: ``prepare`` does not wrap, so the names are the model's own.
        """
        return known_engine(model).state_dict(model)

    def save_model(
        self,
        model: Any,
        save_directory: Path,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write a model's weights on the main process, in shards if they are large.

        Parameters
        ----------
        model : Module
            Prepared or not.
        save_directory : path
            Folder; made if it does not exist. Gets ``model.safetensors``, or
            ``model-00001-of-0000N.safetensors`` and ``model.safetensors.index.json``; shards of an
            earlier save are removed when the new ones are whole.
        max_shard_size : int or str
            Bytes of one file at most, as a number or like ``"5MB"``; a larger tensor gets its own.
        safe_serialization : bool
            Without effect: nothing is ever pickled.

        Raises
        ------
        CheckpointError
            If the folder is a file or holds a checkpoint, or the system refuses.
        """
        from ..checkpoint.sharded import save_weights

        if self._partial.is_main_process:
            engine = known_engine(model)
            weights = {k: engine.to_core(v) for k, v in engine.state_dict(model).items()}
            save_weights(weights, os.fspath(save_directory), max_shard_size)

    # -- what belongs to a checkpoint -------------------------------------------------------------

    def register_for_checkpointing(self, *objects: Any) -> None:
        """Save and load these objects with every checkpoint, in this order.

        Parameters
        ----------
        *objects : object
            Each has ``state_dict`` and ``load_state_dict``.

        Raises
        ------
        ValueError
            If any has not; it lists them.
        """
        bad = [
            f"\n\t- Item at index {at}, {type(obj).__name__}"
            for at, obj in enumerate(objects)
            if not (hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"))
        ]
        if bad:
            raise ValueError(
                "All `objects` must include a `state_dict` and `load_state_dict` function to be "
                f"stored. The following inputs are invalid:{''.join(bad)}"
            )
        self._registered.objects.extend(objects)

    def register_save_state_pre_hook(
        self, hook: Callable[[list[Any], list[Any], str], None]
    ) -> RemovableHandle:
        """Call ``hook(models, weights, output_dir)`` on all ranks before weights are written.

        What it takes out of ``weights`` is not written. ``output_dir`` is the folder that becomes
        the checkpoint: what the hook writes there is part of it, with a checksum.
        """
        return _added(self._registered.save_hooks, hook)

    def register_load_state_pre_hook(
        self, hook: Callable[[list[Any], str], None]
    ) -> RemovableHandle:
        """Call ``hook(models, input_dir)`` on all ranks before weights are loaded.

        What it takes out of ``models`` is not loaded.
        """
        return _added(self._registered.load_hooks, hook)

    def _run(self) -> Run:
        from ..checkpoint.run import Run

        return Run(
            list(self._models),
            list(self._optimizers),
            list(self._schedulers),
            list(self._dataloaders),
            list(self._registered.objects),
            getattr(self, "scaler", None),
            self._accumulation,
            self._partial.process_index,
            self._partial.num_processes,
        )

    # -- whole runs -------------------------------------------------------------------------------

    def save_state(
        self, output_dir: Path | None = None, safe_serialization: bool = True, **save_kwargs: Any
    ) -> pathlib.Path:
        """Write everything that this run is, so that it can go on bit for bit.

        Call it on all ranks. There is a whole checkpoint at any moment: what was there before
        stays until the new one is on the disk.

        Parameters
        ----------
        output_dir : path, optional
            Folder; its checkpoint is replaced, other files in it stay. With
            ``automatic_checkpoint_naming`` it is not looked at: the folder is
            ``<project_dir>/checkpoints/checkpoint_<save_iteration>``.
        safe_serialization : bool
            Without effect: nothing is ever pickled.
        **save_kwargs
            None is known; there are some for engines of later versions.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        CheckpointError
            On all ranks, if it cannot be written on any; what was there before is untouched.
        ValueError
            If there is no ``output_dir``, or an automatic name is taken.
        TypeError
            For an unknown argument.
        """
        import pathlib

        from ..checkpoint.state import save_state

        _refuse_unknown("save_state", save_kwargs)
        project = self._settings.project
        automatic = project.automatic_checkpoint_naming
        if output_dir is None and not automatic:
            raise ValueError(
                "[save_state] no output_dir: give one, or a project_dir with "
                "ProjectConfiguration(automatic_checkpoint_naming=True)"
            )
        path = save_state(
            self._group,
            self._run(),
            None if automatic else output_dir,
            self.project_configuration,
            list(self._registered.save_hooks.values()),
        )
        self._save_iteration += 1
        return pathlib.Path(path)

    def load_state(
        self,
        input_dir: Path | None = None,
        load_kwargs: Mapping[str, Any] | None = None,
        **load_model_func_kwargs: Any,
    ) -> None:
        """Put everything back that ``save_state`` wrote; the loop then goes on where it was.

        Call it on all ranks, after ``prepare`` and ``register_for_checkpointing``. Nothing is
        changed unless the whole checkpoint is undamaged and fits.

        Parameters
        ----------
        input_dir : path, optional
            Folder; one that Accelerate wrote will do. None takes the newest whole one of
            automatic naming.
        load_kwargs : mapping, optional
            Without effect.
        **load_model_func_kwargs
            ``strict`` (True): whether names of weights must be the same. ``map_location``: None,
            "cpu" or "on_device"; tensors stay where the run has them.

        Raises
        ------
        CheckpointError
            On all ranks, if a file is missing, damaged or hostile, or does not fit.
        ValueError
            If there is no such folder, or no folder is given and naming is not automatic.
        TypeError
            For an unknown argument, or an unknown ``map_location``.
        """
        from ..checkpoint.state import load_state

        options = dict(load_model_func_kwargs)
        if options.pop("map_location", None) not in (None, "cpu", "on_device"):
            raise TypeError(
                "Unsupported optimizer map location passed, please choose one of `None`, "
                "`'cpu'`, or `'on_device'`"
            )
        strict = bool(options.pop("strict", True))
        _refuse_unknown("load_state", options)
        if input_dir is None and not self._settings.project.automatic_checkpoint_naming:
            raise ValueError("No input_dir provided and automatic checkpoint naming is disabled.")
        loaded = load_state(
            self._group,
            self._run(),
            input_dir,
            self.project_configuration,
            list(self._registered.load_hooks.values()),
            strict,
        )
        if loaded.save_iteration is not None:
            self._save_iteration = loaded.save_iteration
        for notice in loaded.notices:
            logger.warning("[load_state] %s", notice)


def _added(hooks: dict[int, Callable[..., None]], hook: Callable[..., None]) -> RemovableHandle:
    from ..nn.module import RemovableHandle

    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def _refuse_unknown(op: str, options: Mapping[str, Any]) -> None:
    if options:
        raise TypeError(f"[{op}] unknown arguments: got {', '.join(sorted(options))}")
