# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that take part in a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from ..engines import Engine, default_engine, engine_of_tensor
from ..utils.dataclasses import AutocastKwargs
from .base import Members

__all__ = ["TrainingMembers"]


class TrainingMembers(Members):
    """Base of ``Accelerator``: precision, accumulation, the backward pass, clipping."""

    @property
    def mixed_precision(self) -> str:
        """``"no"`` or ``"bf16"``."""
        return self.state.mixed_precision

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


def _engine_for(parameters: Any) -> Engine:
    """Give the engine of a tensor or of a list of them."""
    if isinstance(parameters, (list, tuple)) and parameters:
        return engine_of_tensor(parameters[0])
    return default_engine()
