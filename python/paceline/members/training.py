# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that take part in a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from .._trace import Kind, span
from ..announce import say
from ..engines import Engine, autocast, default_engine, engine_of_tensor, loaded_engines
from ..model import synchronises
from ..optimizer import AcceleratedOptimizer
from ..scheduler import AcceleratedScheduler
from ..training.accumulation import Accumulation
from ..training.loss_scaling import LossScaling
from ..training.nonfinite import NonFiniteGuard
from ..training.schedule_length import ScheduleLength
from ..utils.dataclasses import AutocastKwargs
from .base import Members

__all__ = ["TrainingMembers"]


class TrainingMembers(Members):
    """Base of ``Accelerator``: precision, accumulation, the backward pass, clipping."""

    _accumulation: Accumulation
    _scaling: LossScaling | None
    _one_batch_noted: bool
    _loaders_were_ready: bool | None  # before the call of `prepare` that is running, if one is

    def _begin_training(self) -> None:
        """Make the parts of this file, once the lists of prepared objects are there."""
        self._accumulation = Accumulation(self.gradient_state)
        self._scaling = None
        self._one_batch_noted = False
        self._loaders_were_ready = None
        options = self._settings.scaler
        if self.mixed_precision == "fp16" and options.enabled:
            engine = loaded_engines()[-1]
            scaler = engine.gradient_scaler(self.device, **options.to_kwargs())
            self._scaling = LossScaling(scaler, self._optimizers)
        self._guard = NonFiniteGuard(self._settings.nonfinite, lambda: self._group, self._models)

    # --- precision ------------------------------------------------------------------------------

    @property
    def mixed_precision(self) -> str:
        """``"no"``, ``"bf16"`` or ``"fp16"``."""
        return self.state.mixed_precision

    @property
    def native_amp(self) -> bool:
        """Whether models compute in mixed precision."""
        return self.mixed_precision != "no"

    @property
    def scaler(self) -> Any:
        """The gradient scaler; None unless the precision is fp16."""
        return None if self._scaling is None else self._scaling.scaler

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether any optimizer left out its last step for gradients that were not finite."""
        return any(optimizer.step_was_skipped for optimizer in self._optimizers)

    def autocast(
        self, autocast_handler: AutocastKwargs | None = None
    ) -> AbstractContextManager[Any]:
        """Compute in this Accelerator's precision inside the block; prepared models do already."""
        handler = autocast_handler or self._settings.autocast
        if not handler.enabled or self.mixed_precision == "no":
            return nullcontext()
        return autocast(self.mixed_precision)

    # --- accumulation ---------------------------------------------------------------------------

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

    @contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """Count a batch; inside, ``optimizer.step`` works only where a window ends.

        A window ends after ``gradient_accumulation_steps`` batches, and at the end of the loader.
        Until then the gradients of ``models`` stay on their rank. The last window of a loader is
        shorter where its batches do not come out even, and its gradients are divided by its true
        length; ``GradientAccumulationPlugin(scale_last_window=False)`` divides by
        ``gradient_accumulation_steps`` there too, as Accelerate does.

        Each set of models counts for itself. A block inside a block counts nothing.

        Parameters
        ----------
        *models : Module
            The prepared models that run inside.
        """
        self._note_windows_of_one()
        window, state = self._accumulation, self.gradient_state
        joined = None if window.inside else self._models.joined_ranks
        may_sync = joined is None or joined.begin_batch(window.ends_here(models))
        factor = window.enter(models, may_sync=may_sync)
        try:
            if factor != 1.0:
                self._models.scale_gradients(models, factor)
            quiet = not (state.sync_gradients or state.plugin.sync_each_batch)
            if not quiet:
                yield
                return
            with ExitStack() as stack:
                for model in models:
                    stack.enter_context(self._models.no_sync(model))
                yield
        finally:
            window.leave()

    def _note_windows_of_one(self) -> None:
        """Say once that ``accumulate`` accumulates nothing, where nobody asked for that."""
        if self._one_batch_noted or self.gradient_state.num_steps != 1:
            return
        self._one_batch_noted = True
        asked = "gradient_accumulation_steps" in self._settings.sources
        if self._partial.is_main_process and not asked:
            say(
                "accumulate() steps at every batch, for gradient_accumulation_steps is 1: to "
                "accumulate, write Accelerator(gradient_accumulation_steps=N)"
            )

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """Keep the gradients of the backward passes inside on their rank.

        The next backward pass outside reduces what was accumulated, and its own.
        """
        with self._models.no_sync(model):
            yield

    @staticmethod
    @contextmanager
    def trigger_sync_in_backward(model: Any) -> Iterator[None]:
        """Reduce the gradients in the backward passes inside, also where ``no_sync`` is active.

        Parameters
        ----------
        model : Module
            A prepared model; for any other the block does nothing.
        """
        with synchronises(model):
            yield

    # --- a step ---------------------------------------------------------------------------------

    def backward(self, loss: Any, **kwargs: Any) -> None:
        """Run the backward pass of ``loss`` divided by the batches of its window.

        Parameters
        ----------
        loss : tensor
            A scalar.
        **kwargs
            As for ``Tensor.backward``.
        """
        engine = engine_of_tensor(loss)
        window = self._accumulation
        self._guard.saw_loss(engine, loss)
        if self._scaling is not None:
            loss = self._scaling.scale(loss, window.begins_window)
        window.backward_seen = True
        with span(Kind.BACKWARD, "backward pass"):
            self._models.backward(engine, loss, window.divisor, **kwargs)
        if self._report is not None:
            loader = self.gradient_state.active_dataloader
            self._report.count(loss, None if loader is None else loader.total_batch_size)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        """Divide gradients by the loss scale of fp16; in other precisions there is none.

        ``clip_grad_norm_`` and ``clip_grad_value_`` do it by themselves.

        Parameters
        ----------
        optimizer : AcceleratedOptimizer, or list of them, optional
            Whose gradients; None means all prepared ones. Those that are unscaled already stay as
            they are.
        """
        if self._scaling is None:
            return
        several = self._optimizers if optimizer is None else optimizer
        several = several if isinstance(several, (list, tuple)) else [several]
        self._scaling.unscale(
            one.optimizer if type(one) is AcceleratedOptimizer else one for one in several
        )

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        """Scale gradients so that their total norm is at most ``max_norm``.

        While gradients are accumulated they are left as they are: a part of a sum is not what
        the limit is about. They are left alone too where the norm is not finite.

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
        params, engine = self._ready_to_clip(parameters)
        with span(Kind.OPTIMIZER, "clip"):
            norm = engine.clip_grad_norm_(
                params, float(max_norm), float(norm_type), self.sync_gradients
            )
        if self._scaling is not None and not self.sync_gradients:
            norm = norm / self._scaling.scaler.get_scale()
        return norm

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Limit each element of the gradients to ``[-clip_value, clip_value]``."""
        params, engine = self._ready_to_clip(parameters)
        if self.sync_gradients:
            engine.clip_grad_value_(params, float(clip_value))

    def _ready_to_clip(self, parameters: Any) -> tuple[list[Any], Engine]:
        """Give parameters as a list, their gradients unscaled, and their engine."""
        single = not isinstance(parameters, (list, tuple)) and hasattr(parameters, "grad")
        params = [parameters] if single else list(parameters)
        if self._scaling is not None and self.sync_gradients:
            wanted = {id(p) for p in params}
            self.unscale_gradients([o for o in self._optimizers if _holds(o, wanted)])
        return params, engine_of_tensor(params[0]) if params else default_engine()

    # --- optimizers and schedulers --------------------------------------------------------------

    def prepare_optimizer(self, optimizer: Any, device_placement: bool | None = None) -> Any:
        """Prepare one optimizer; see ``AcceleratedOptimizer``."""
        if type(optimizer) is AcceleratedOptimizer:
            return optimizer
        prepared = AcceleratedOptimizer(
            optimizer,
            self.gradient_state,
            accumulation=self._accumulation,
            scaling=self._scaling,
            guard=self._guard,
        )
        self._optimizers.append(prepared)
        return prepared

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
            self._partial.num_processes if self._settings.scheduler.step_per_process else 1,
            step_with_optimizer=self._settings.step_scheduler_with_optimizer,
            split_batches=self._settings.data.split_batches,
        )
        prepared.watch_length(
            ScheduleLength(
                prepared.steps_per_call,
                self._partial.num_processes,
                lambda: self.gradient_state.num_steps,
                say if self._partial.is_main_process else _say_nothing,
            ),
            self._dataloaders,
            made_before=self._loaders_were_ready is False,
        )
        self._schedulers.append(prepared)
        return prepared

    def _forget_training(self) -> None:
        """Forget what was prepared, and the windows that are open."""
        self._guard.tell_late(wait=True)
        self._models.close()
        if self._scaling is not None:
            self._scaling.forget()
        self._optimizers.clear()
        self._schedulers.clear()
        self._accumulation.reset()


def _holds(optimizer: AcceleratedOptimizer, wanted: set[int]) -> bool:
    return any(id(p) in wanted for group in optimizer.param_groups for p in group["params"])


def _say_nothing(text: str) -> None:
    """Stand for ``say`` on the other processes."""
