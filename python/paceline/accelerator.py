# SPDX-License-Identifier: Apache-2.0
"""``Accelerator``: wires process group, data sharding, gradient synchronisation and precision.

Its methods stand in ``members/``, one file a topic. It only wires; every part works without it. It
reaches tensors through an engine (``engines/``), so this file imports no tensor library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .announce import Plan, files_not_applied, say
from .data_loader import DataLoaderShard
from .engines import engine_of, known_engine
from .environment import read_environment
from .logging import get_logger
from .members.absent import AbsentMembers
from .members.checkpoints import CheckpointMembers, Registered
from .members.collectives import CollectiveMembers
from .members.configuration import ConfigurationMembers
from .members.coordination import CoordinationMembers
from .members.data import DataMembers
from .members.process import ProcessMembers
from .members.tracking import TrackingMembers
from .members.training import TrainingMembers
from .model import PreparedModels, unwrap_forward
from .optimizer import AcceleratedOptimizer
from .scheduler import AcceleratedScheduler
from .settings import Arguments, Settings, resolve
from .state import AcceleratorState, GradientState, PartialState
from .utils.dataclasses import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    KwargsHandler,
    PrecisionType,
    ProjectConfiguration,
    RNGType,
)
from .utils.other import release_memory

if TYPE_CHECKING:
    from .run_report import RunReport

__all__ = ["Accelerator"]

logger = get_logger(__name__)


class Accelerator(
    ProcessMembers,
    ConfigurationMembers,
    TrainingMembers,
    CoordinationMembers,
    CollectiveMembers,
    DataMembers,
    CheckpointMembers,
    TrackingMembers,
    AbsentMembers,
):
    """One training script for every number of processes and every precision.

    The arguments, their order and their defaults are Hugging Face Accelerate's.

    Parameters
    ----------
    device_placement : bool
        Move models and batches to ``device``.
    split_batches : bool, optional
        A loader's batch size is that of all processes together.
    mixed_precision : {"no", "bf16", "fp16"}, optional
        None: ``ACCELERATE_MIXED_PRECISION``, else "no".
    gradient_accumulation_steps : int, optional
        Batches per optimizer step; None: ``ACCELERATE_GRADIENT_ACCUMULATION_STEPS``, else 1. An
        argument wins over the environment.
    cpu : bool
        Use the CPU even where there is another device.
    dataloader_config : DataLoaderConfiguration, optional
        How data loaders are shared out.
    gradient_accumulation_plugin : GradientAccumulationPlugin, optional
        In place of ``gradient_accumulation_steps``.
    step_scheduler_with_optimizer : bool
        See ``AcceleratedScheduler``.
    rng_types : list of {"generator", "torch", "cuda"}, optional
        Random generators whose state rank 0 hands to all at the start of each epoch.
    log_with : str, tracker, or list of those, optional
        See ``init_trackers``.
    project_dir : path, optional
        Folder of checkpoints and logs.
    project_config : ProjectConfiguration, optional
        The same and more.
    kwargs_handlers : list of KwargsHandler, optional
        At most one each of ``DistributedDataParallelKwargs``, ``InitProcessGroupKwargs``,
        ``AutocastKwargs``, ``GradScalerKwargs``, ``ProfileKwargs``, ``NonFiniteKwargs``,
        ``SchedulerKwargs``.

    Raises
    ------
    ValueError
        For a value that cannot be, or arguments that contradict each other.
    NotImplementedError
        For an argument of a later version, rather than ignoring it.

    Examples
    --------
    >>> accelerator = Accelerator()
    >>> accelerator.num_processes
    1
    """

    def __init__(
        self,
        device_placement: bool = True,
        split_batches: bool | None = None,
        mixed_precision: PrecisionType | str | None = None,
        gradient_accumulation_steps: int | None = None,
        cpu: bool = False,
        dataloader_config: DataLoaderConfiguration | None = None,
        deepspeed_plugin: Any = None,
        fsdp_plugin: Any = None,
        torch_tp_plugin: Any = None,
        megatron_lm_plugin: Any = None,
        rng_types: Sequence[RNGType | str] | None = None,
        log_with: Any = None,
        project_dir: str | os.PathLike[str] | None = None,
        project_config: ProjectConfiguration | None = None,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        step_scheduler_with_optimizer: bool = True,
        kwargs_handlers: Sequence[KwargsHandler] | None = None,
        dynamo_backend: Any = None,
        dynamo_plugin: Any = None,
        deepspeed_plugins: Any = None,
        parallelism_config: Any = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        environment = read_environment()
        self._settings: Settings = resolve(environment, Arguments(**given))
        init = self._settings.init
        partial = PartialState(self._settings.cpu, **init.to_kwargs())
        self.state = AcceleratorState(partial, self._settings.precision)
        self.gradient_state = GradientState(self._settings.accumulation)
        self._save_iteration = self._settings.project.iteration
        self._models = PreparedModels(lambda: self._group, self._settings, self.gradient_state)
        self._optimizers: list[AcceleratedOptimizer] = []
        self._schedulers: list[AcceleratedScheduler] = []
        self._dataloaders: list[DataLoaderShard] = []
        self._begin_training()
        self._registered = Registered()
        self._report = _report(self, environment.report_file)
        self._choose_trackers()
        self._unknown: set[type] = set()
        unapplied = files_not_applied(environment, self._settings.file_keys())
        if unapplied is not None:
            logger.warning(unapplied)

    def prepare(self, *args: Any, device_placement: Sequence[bool] | None = None) -> Any:
        """Prepare models, optimizers, data loaders and schedulers, in any order and number.

        Rank 0's parameters, buffers and shuffle seed are copied to all ranks, so a script that
        sets no seed is right. Call it on all ranks, with the same things in the same order.

        Parameters
        ----------
        *args : object
            What to prepare. Anything else is given back untouched, with one warning a type.
        device_placement : sequence of bool, optional
            Per argument, whether it is moved to ``device``.

        Returns
        -------
        object
            The prepared objects in the order given; a single one as itself.

        Raises
        ------
        ValueError
            When ``device_placement`` has another length than the arguments.
        CollectiveMismatchError
            When the ranks prepare models that differ in names, shapes or dtypes.
        """
        places: Sequence[bool | None] = device_placement or [None] * len(args)
        if len(places) != len(args):
            raise ValueError(
                f"[prepare] device_placement has {len(places)} entries, expected one for each of "
                f"the {len(args)} objects"
            )
        self._loaders_were_ready = bool(self._dataloaders)
        done = [self._prepare_one(obj, place) for obj, place in zip(args, places, strict=True)]
        for at, obj in enumerate(done):  # a scheduler must find its prepared optimizer
            engine = engine_of(obj)
            if engine is not None and engine.is_scheduler(obj):
                done[at] = self.prepare_scheduler(obj)
        self._loaders_were_ready = None
        prepared = [obj for obj in done if self._is_prepared(obj)]
        for obj in prepared:
            obj._is_accelerate_prepared = True
        self._say_plan([obj for obj in prepared if type(obj) is DataLoaderShard])
        return done[0] if len(done) == 1 else tuple(done)

    def _prepare_one(self, obj: Any, device_placement: bool | None) -> Any:
        engine = engine_of(obj)
        if engine is not None and engine.is_data_loader(obj):
            return self.prepare_data_loader(obj, device_placement)
        if engine is not None and engine.is_model(obj):
            return self.prepare_model(obj, device_placement)
        if engine is not None and engine.is_optimizer(obj):
            return self.prepare_optimizer(obj)
        if engine is None or not engine.is_scheduler(obj):
            self._note_unknown(obj)
        return obj

    def _note_unknown(self, obj: Any) -> None:
        # Accelerate gives it back in silence: a wrapped model is then never synchronised.
        kind = type(obj)
        if obj is not None and kind not in self._unknown and not self._is_prepared(obj):
            self._unknown.add(kind)
            logger.warning(
                "[prepare] %s.%s was given back untouched: it is not a model, optimizer, data "
                "loader or scheduler that paceline knows",
                kind.__module__,
                kind.__qualname__,
            )

    def _is_prepared(self, obj: Any) -> bool:
        mine = (self._models, self._optimizers, self._schedulers, self._dataloaders)
        return any(obj is one for several in mine for one in several)

    def _say_plan(self, loaders: Sequence[DataLoaderShard]) -> None:
        if loaders and self.is_main_process:
            plan = Plan(
                self.num_processes,
                str(self.device),
                self.state.mixed_precision,
                self.gradient_state.num_steps,
            )
            say(plan.line(loaders))

    def prepare_model(
        self, model: Any, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Any:
        """Prepare one model: the same object comes back.

        Parameters
        ----------
        model : Module
            The model.
        device_placement : bool, optional
            Whether to move it to ``device``.
        evaluation_mode : bool
            Do not synchronise gradients.
        """
        engine = known_engine(model)
        self._models.add(
            model, engine, self.device if self._places(device_placement) else None, evaluation_mode
        )
        return model

    def unwrap_model(
        self, model: Any, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
    ) -> Any:
        """Give the model as the script made it; here that is the prepared object itself.

        Parameters
        ----------
        model : Module
            A prepared model.
        keep_fp32_wrapper : bool
            False also takes mixed precision off its ``forward``.
        keep_torch_compile : bool
            Without effect.
        """
        if not keep_fp32_wrapper:
            unwrap_forward(model)
        return model

    def free_memory(self, *objects: Any) -> list[None]:
        """Forget everything prepared and collect garbage; gives a None to assign to each object.

        Examples
        --------
        >>> accelerator = Accelerator()
        >>> model, optimizer = object(), object()
        >>> model, optimizer = accelerator.free_memory(model, optimizer)
        """
        self._forget_training()
        self._dataloaders.clear()
        self._unknown.clear()
        self.step = 0
        return release_memory(*objects)

    clear = free_memory


def _report(accelerator: Accelerator, path: str | None) -> RunReport | None:
    """Begin what a sweep wants to know of this run."""
    if path is None:
        return None
    from .run_report import RunReport

    return RunReport(accelerator, path)
