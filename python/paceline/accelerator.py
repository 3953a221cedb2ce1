# SPDX-License-Identifier: Apache-2.0
"""``Accelerator``: wires process group, data sharding, gradient synchronisation and precision.

It only wires; every part works without it. It reaches tensors through an engine (``engines/``),
so this file imports no tensor library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from ._process_members import ProcessMembers
from .data_loader import DataLoaderShard, prepare_data_loader
from .engines import Engine, default_engine, engine_of, engine_of_tensor
from .logging import get_logger
from .model import PreparedModels, unwrap_forward
from .optimizer import AcceleratedOptimizer
from .scheduler import AcceleratedScheduler
from .settings import LATER, Settings, resolve
from .state import AcceleratorState, GradientState, PartialState, read_environment
from .utils.dataclasses import (
    AutocastKwargs,
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    KwargsHandler,
    PrecisionType,
)
from .utils.metrics import gather_for_metrics_in
from .utils.operations import gather_in, pad_in, reduce_in

__all__ = ["Accelerator"]

logger = get_logger(__name__)


class Accelerator(ProcessMembers):
    """One training script for every number of processes and every precision.

    The arguments, their order and their defaults are Hugging Face Accelerate's.

    Parameters
    ----------
    device_placement : bool
        Move models and batches to ``device``.
    split_batches : bool, optional
        A loader's batch size is that of all processes together.
    mixed_precision : {"no", "bf16"}, optional
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
    kwargs_handlers : list of KwargsHandler, optional
        ``DistributedDataParallelKwargs``, ``InitProcessGroupKwargs``, ``AutocastKwargs``.

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
        rng_types: Any = None,
        log_with: Any = None,
        project_dir: Any = None,
        project_config: Any = None,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        step_scheduler_with_optimizer: bool = True,
        kwargs_handlers: Sequence[KwargsHandler] | None = None,
        dynamo_backend: Any = None,
        dynamo_plugin: Any = None,
        deepspeed_plugins: Any = None,
        parallelism_config: Any = None,
    ) -> None:
        given = locals()
        self._settings: Settings = resolve(
            read_environment(),
            device_placement=device_placement,
            split_batches=split_batches,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            cpu=cpu,
            dataloader_config=dataloader_config,
            gradient_accumulation_plugin=gradient_accumulation_plugin,
            step_scheduler_with_optimizer=step_scheduler_with_optimizer,
            kwargs_handlers=kwargs_handlers,
            later={name: given[name] for name in LATER},
        )
        partial = PartialState(self._settings.cpu, timeout=self._settings.init.timeout)
        self.state = AcceleratorState(partial, self._settings.precision)
        self.gradient_state = GradientState(self._settings.accumulation)
        self._models = PreparedModels(partial.group, self._settings, self.gradient_state)
        self._optimizers: list[AcceleratedOptimizer] = []
        self._schedulers: list[AcceleratedScheduler] = []
        self._dataloaders: list[DataLoaderShard] = []

    def __getattr__(self, name: str) -> Any:
        if name in _LATER_MEMBERS:
            raise AttributeError(f"Accelerator.{name} is not built yet")
        raise AttributeError(f"'Accelerator' object has no attribute {name!r}")

    # --- settings -------------------------------------------------------------------------------

    @property
    def mixed_precision(self) -> str:
        """``"no"`` or ``"bf16"``."""
        return self.state.mixed_precision

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

    @property
    def sync_gradients(self) -> bool:
        """Whether the current batch ends an accumulation window."""
        return self.gradient_state.sync_gradients

    @sync_gradients.setter
    def sync_gradients(self, sync_gradients: bool) -> None:
        self.gradient_state.sync_gradients = sync_gradients

    @property
    def gradient_accumulation_steps(self) -> int:
        """Batches per optimizer step."""
        return self.gradient_state.num_steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, gradient_accumulation_steps: int) -> None:
        self.gradient_state.num_steps = gradient_accumulation_steps

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether any optimizer skipped its last step for overflowing gradients."""
        return any(optimizer.step_was_skipped for optimizer in self._optimizers)

    # --- prepare --------------------------------------------------------------------------------

    def prepare(self, *args: Any, device_placement: Sequence[bool] | None = None) -> Any:
        """Prepare models, optimizers, data loaders and schedulers, in any order and number.

        Rank 0's parameters, buffers and shuffle seed are copied to all ranks, so a script that
        sets no seed is right. Call it on all ranks, with the same things in the same order.

        Parameters
        ----------
        *args : object
            What to prepare; anything else is given back untouched.
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
        done = [self._prepare_one(obj, place) for obj, place in zip(args, places, strict=True)]
        for at, obj in enumerate(done):  # a scheduler must find its prepared optimizer
            engine = engine_of(obj)
            if engine is not None and engine.is_scheduler(obj):
                done[at] = self.prepare_scheduler(obj)
        return done[0] if len(done) == 1 else tuple(done)

    def _prepare_one(self, obj: Any, device_placement: bool | None) -> Any:
        engine = engine_of(obj)
        if engine is None:
            return obj
        if engine.is_data_loader(obj):
            return self.prepare_data_loader(obj, device_placement)
        if engine.is_model(obj):
            return self.prepare_model(obj, device_placement)
        if engine.is_optimizer(obj):
            return self.prepare_optimizer(obj)
        return obj

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
        engine = _engine_of(model)
        self._models.add(
            model, engine, self.device if self._places(device_placement) else None, evaluation_mode
        )
        return model

    def prepare_optimizer(self, optimizer: Any, device_placement: bool | None = None) -> Any:
        """Prepare one optimizer; see ``AcceleratedOptimizer``."""
        if type(optimizer) is AcceleratedOptimizer:
            return optimizer
        prepared = AcceleratedOptimizer(optimizer, self.gradient_state)
        self._optimizers.append(prepared)
        return prepared

    def prepare_data_loader(
        self,
        data_loader: Any,
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Callable[..., Any] | None = None,
    ) -> Any:
        """Prepare one data loader; see ``DataLoaderShard``."""
        if type(data_loader) is DataLoaderShard:
            return data_loader
        prepared = prepare_data_loader(
            data_loader,
            _engine_of(data_loader),
            self._partial.group,
            self._settings.data,
            device=self.device if self._places(device_placement) else None,
            gradient_state=self.gradient_state,
        )
        self._dataloaders.append(prepared)
        if logger.isEnabledFor(logging.INFO):
            self._announce(prepared)
        return prepared

    def _announce(self, loader: DataLoaderShard) -> None:
        try:
            steps = str(len(loader))
        except TypeError:  # a stream, or a sampler that does not know its length
            steps = "an unknown number of"
        logger.info(
            "%d processes on %s, precision %s; global batch %s x accumulation %d; %s batches",
            self.num_processes,
            self.device,
            self.mixed_precision,
            loader.total_batch_size,
            self.gradient_accumulation_steps,
            steps,
        )

    def prepare_scheduler(self, scheduler: Any) -> Any:
        """Prepare one scheduler; see ``AcceleratedScheduler`` for how far it steps."""
        if type(scheduler) is AcceleratedScheduler:
            return scheduler
        owner = getattr(scheduler, "optimizer", None)
        own = [o for o in self._optimizers if owner is o or owner is o.optimizer]
        prepared = AcceleratedScheduler(
            scheduler,
            own or self._optimizers,
            self.gradient_state,
            self.num_processes,
            step_with_optimizer=self._settings.step_scheduler_with_optimizer,
            split_batches=self.split_batches,
        )
        self._schedulers.append(prepared)
        return prepared

    def _places(self, device_placement: bool | None) -> bool:
        return self._settings.device_placement if device_placement is None else device_placement

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
        """Forget everything prepared; gives a None for each object, to assign them to."""
        self._models.close()
        self._optimizers.clear()
        self._schedulers.clear()
        self._dataloaders.clear()
        self.gradient_state.step = 0
        return [None] * len(objects)

    clear = free_memory

    # --- the training step ----------------------------------------------------------------------

    def backward(self, loss: Any, **kwargs: Any) -> None:
        """Run the backward pass of ``loss / gradient_accumulation_steps``.

        Parameters
        ----------
        loss : tensor
            A scalar.
        **kwargs
            As for ``Tensor.backward``.
        """
        engine = engine_of_tensor(loss)
        self._models.backward(engine, loss, self.gradient_accumulation_steps, **kwargs)

    @contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """Count a batch; inside, ``optimizer.step`` works only where a window ends.

        A window ends after ``gradient_accumulation_steps`` batches, and at the end of the loader.
        Until then the gradients of ``models`` stay on their rank.

        Parameters
        ----------
        *models : Module
            The prepared models that run inside.
        """
        self.gradient_state.next_micro_step()
        quiet = not (self.sync_gradients or self.gradient_state.plugin.sync_each_batch)
        with ExitStack() as stack:
            for model in models if quiet else ():
                stack.enter_context(self._models.no_sync(model))
            yield

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """Keep the gradients of the backward passes inside on their rank.

        The next backward pass outside reduces what was accumulated, and its own.
        """
        with self._models.no_sync(model):
            yield

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        """Scale gradients so that their total norm is at most ``max_norm``.

        While gradients are accumulated they are left as they are: a part of a sum is not what
        the limit is about.

        Parameters
        ----------
        parameters : iterable of tensors, or a tensor
            Whose gradients.
        max_norm, norm_type : float
            The limit, and which norm.

        Returns
        -------
        tensor
            The total norm before clipping.
        """
        return _engine_for(parameters).clip_grad_norm_(
            parameters, float(max_norm), float(norm_type), self.sync_gradients
        )

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Limit each element of the gradients to ``[-clip_value, clip_value]``."""
        if self.sync_gradients:
            _engine_for(parameters).clip_grad_value_(parameters, float(clip_value))

    def autocast(
        self, autocast_handler: AutocastKwargs | None = None
    ) -> AbstractContextManager[Any]:
        """Compute in this Accelerator's precision inside the block; prepared models do already."""
        handler = autocast_handler or self._settings.autocast
        if not handler.enabled or self.mixed_precision == "no":
            return nullcontext()
        return default_engine().autocast(self.mixed_precision)

    # --- between the processes ------------------------------------------------------------------

    def gather(self, tensor: Any) -> Any:
        """Gather tensors of all processes; see ``paceline.utils.gather``."""
        return gather_in(self._partial.group, tensor)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """Gather, without the samples that were repeated to make the last batches equal.

        Parameters
        ----------
        input_data : tensor, or nested list, tuple or dict; or any object
            A per-sample result of the current batch, or a per-batch scalar. What holds no tensor
            is gathered as objects.
        use_gather_object : bool
            Gather as objects in any case.
        """
        return gather_for_metrics_in(
            self._partial.group,
            self.gradient_state.active_dataloader,
            input_data,
            use_gather_object,
        )

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """Reduce tensors over all processes; see ``paceline.utils.reduce``."""
        return reduce_in(self._partial.group, tensor, reduction, scale)

    def pad_across_processes(
        self, tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
    ) -> Any:
        """Pad tensors to the longest; see ``paceline.utils.pad_across_processes``."""
        return pad_in(self._partial.group, tensor, dim, pad_index, pad_first)

    def save(self, obj: Any, f: Any, safe_serialization: bool = False) -> None:
        """Save an object with ``paceline.save``, on the main process only.

        Parameters
        ----------
        obj : object
            A state dict, or anything else that ``paceline.save`` takes.
        f : path
            Where to.
        safe_serialization : bool
            Without effect: nothing is ever pickled.
        """
        if self.is_main_process:
            default_engine().save(obj, f)


# Documented members of later versions, so that their absence says so.
_LATER_MEMBERS = frozenset(
    "trigger_sync_in_backward join_uneven_inputs unscale_gradients get_state_dict save_model "
    "save_state load_state register_for_checkpointing register_save_state_pre_hook "
    "register_load_state_pre_hook profile init_trackers log get_tracker set_trigger "
    "check_trigger skip_first_batches scaler trackers project_dir logging_dir".split()
)


def _engine_of(obj: Any) -> Engine:
    engine = engine_of(obj)
    if engine is None:
        raise TypeError(f"[prepare] cannot prepare a {type(obj).__name__}")
    return engine


def _engine_for(parameters: Any) -> Engine:
    """Give the engine of a tensor or of a list of them."""
    if isinstance(parameters, (list, tuple)) and parameters:
        return engine_of_tensor(parameters[0])
    return default_engine()
