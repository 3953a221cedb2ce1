# SPDX-License-Identifier: Apache-2.0
"""Dynamic scaling of fp16 losses, with the interface of ``torch.amp.GradScaler``.

An fp16 gradient below 6e-8 is zero. The loss is therefore multiplied by a large number, and the
gradients are divided by it again before they are used; where that made one of them overflow, the
step is left out and the number is halved. Knows optimizers by ``param_groups`` and ``step``, and
tensors through the engine, so that it serves both ways in.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engines import Engine

__all__ = ["GradScaler"]


class _Stage(enum.Enum):
    READY = 0
    UNSCALED = 1
    STEPPED = 2


@dataclass
class _Progress:
    """What has happened to an optimizer's gradients since the last ``update``."""

    stage: _Stage = _Stage.READY
    found_inf: bool = False


class GradScaler:
    """Scales losses, unscales gradients, and leaves out the steps whose gradients overflowed.

    The factor is multiplied by ``backoff_factor`` after a step that was left out, and by
    ``growth_factor`` after ``growth_interval`` steps in a row that were not.

    Parameters
    ----------
    device : str
        Accepted; the gradients are unscaled where they are.
    init_scale : float
        The first factor.
    growth_factor, backoff_factor : float
        See above: more than 1, and less than 1.
    growth_interval : int
        See above.
    enabled : bool
        False makes ``step`` the optimizer's own, and the other methods do nothing.

    Raises
    ------
    ValueError
        For factors that would not grow or shrink.

    Examples
    --------
    >>> import paceline
    >>> from paceline.amp import GradScaler
    >>> w = paceline.ones(1, requires_grad=True)
    >>> optimizer = paceline.optim.SGD([w], lr=0.5)
    >>> scaler = GradScaler(init_scale=4.0)
    >>> scaler.scale((w * 2).sum()).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    >>> w.detach()
    tensor([0.])
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if enabled and not growth_factor > 1.0:
            raise ValueError(f"[GradScaler] growth_factor: got {growth_factor}, expected above 1.0")
        if enabled and not backoff_factor < 1.0:
            raise ValueError(
                f"[GradScaler] backoff_factor: got {backoff_factor}, expected below 1.0"
            )
        self._device = device
        self._enabled = enabled
        self._scale = _fp32(init_scale)
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._growth_tracker = 0
        self._progress: dict[int, _Progress] = {}  # by id of optimizer, until the next update

    # --- the three calls of a step --------------------------------------------------------------

    def scale(self, outputs: Any) -> Any:
        """Multiply a tensor, or all in an iterable, by the factor.

        Parameters
        ----------
        outputs : tensor, or iterable of them
            What ``backward`` is called on.

        Returns
        -------
        tensor, list or tuple
            In the shape given; another iterable becomes a lazy one.

        Raises
        ------
        ValueError
            For anything else.
        """
        from ..engines import is_tensor

        if not self._enabled:
            return outputs
        if is_tensor(outputs):
            return outputs * self._scale
        if isinstance(outputs, (str, bytes)) or not isinstance(outputs, Iterable):
            raise ValueError(
                f"[GradScaler.scale] got {type(outputs).__name__}, expected a Tensor or an "
                "iterable of Tensors"
            )
        scaled = map(self.scale, outputs)
        return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled

    def unscale_(self, optimizer: Any) -> None:
        """Divide an optimizer's gradients by the factor, and look for NaN and Inf, in one pass.

        ``step`` does it if it was not done; do it before where gradients are clipped or read.

        Raises
        ------
        RuntimeError
            When it was done already since the last ``update``.
        ValueError
            For fp16 gradients: the parameters must be fp32.
        """
        if not self._enabled:
            return
        progress = self._of(optimizer)
        if progress.stage is _Stage.UNSCALED:
            raise RuntimeError(
                "[GradScaler.unscale_] unscale_() has already been called on this optimizer since "
                "the last update(): call it once a step"
            )
        if progress.stage is _Stage.STEPPED:
            raise RuntimeError(
                "[GradScaler.unscale_] unscale_() is being called after step(): call update() first"
            )
        progress.found_inf = not self._unscale(optimizer, 1.0 / self._scale)
        progress.stage = _Stage.UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Unscale, and step unless a gradient was NaN or infinite.

        Parameters
        ----------
        optimizer : Optimizer
            Whose step it is.
        *args, **kwargs
            For ``optimizer.step``. A closure is refused.

        Returns
        -------
        object
            What the optimizer's step gave; None where it was left out.

        Raises
        ------
        RuntimeError
            When called twice without an ``update`` between, or with a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if kwargs.get("closure") is not None or (args and callable(args[0])):
            raise RuntimeError(
                "[GradScaler.step] Closure use is not currently supported if GradScaler is "
                "enabled: it would have to scale inside the optimizer's loop"
            )
        progress = self._of(optimizer)
        if progress.stage is _Stage.STEPPED:
            raise RuntimeError(
                "[GradScaler.step] step() has already been called since the last update()"
            )
        if progress.stage is _Stage.READY:
            self.unscale_(optimizer)
        result = None if progress.found_inf else optimizer.step(*args, **kwargs)
        progress.stage = _Stage.STEPPED
        return result

    def update(self, new_scale: Any = None) -> None:
        """Adjust the factor after the steps of an iteration.

        Parameters
        ----------
        new_scale : float or tensor, optional
            The factor from now on, in place of the rule.

        Raises
        ------
        RuntimeError
            When no gradient was unscaled since the last call.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            value = new_scale if isinstance(new_scale, (int, float)) else new_scale.item()
            self._scale = _fp32(value)
        elif not any(p.stage is not _Stage.READY for p in self._progress.values()):
            raise RuntimeError(
                "[GradScaler.update] No inf checks were recorded prior to update: call "
                "step(optimizer) or unscale_(optimizer) first"
            )
        elif any(p.found_inf for p in self._progress.values()):
            self._scale = _fp32(self._scale * self._backoff_factor)
            self._growth_tracker = 0
        else:
            self._grow()
        self._progress.clear()

    def _grow(self) -> None:
        self._growth_tracker += 1
        if self._growth_tracker < self._growth_interval:
            return
        grown = _fp32(self._scale * self._growth_factor)
        if grown != float("inf"):
            self._scale = grown
        self._growth_tracker = 0

    # --- gradients ------------------------------------------------------------------------------

    def _of(self, optimizer: Any) -> _Progress:
        return self._progress.setdefault(id(optimizer), _Progress())

    @staticmethod
    def _unscale(optimizer: Any, factor: float) -> bool:
        from ..engines import engine_of_tensor

        by_engine: dict[str, tuple[Engine, list[Any]]] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                # A gradient has its parameter's dtype; to look at it would have it read once more.
                half = str(p.dtype).endswith("float16") and "bfloat16" not in str(p.dtype)
                if half and p.grad is not None:
                    raise ValueError(
                        "[GradScaler.unscale_] Attempting to unscale FP16 gradients: keep the "
                        "parameters in fp32, autocast casts them where it pays"
                    )
                engine = engine_of_tensor(p)
                by_engine.setdefault(engine.name, (engine, []))[1].append(p)
        finite = [engine.unscale_gradients(ps, factor) for engine, ps in by_engine.values()]
        return all(finite)

    def found_inf(self, optimizer: Any) -> bool:
        """Whether a gradient of the optimizer was NaN or infinite since the last ``update``."""
        progress = self._progress.get(id(optimizer))
        return progress is not None and progress.found_inf

    def is_unscaled(self, optimizer: Any) -> bool:
        """Whether the optimizer's gradients have been unscaled since the last ``update``."""
        progress = self._progress.get(id(optimizer))
        return progress is not None and progress.stage is not _Stage.READY

    # --- settings and state ---------------------------------------------------------------------

    def get_scale(self) -> float:
        """Give the factor; 1.0 where disabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """Give the growth factor."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the growth factor."""
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """Give the backoff factor."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the backoff factor."""
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """Give the growth interval."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set the growth interval."""
        self._growth_interval = new_interval

    def is_enabled(self) -> bool:
        """Whether anything is scaled."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """Give the factor and the settings, under PyTorch's names; empty where disabled.

        To save them in the middle of a run, do so after ``update``.
        """
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave.

        Raises
        ------
        RuntimeError
            For an empty one, while this scaler is enabled.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "[GradScaler.load_state_dict] The source state dict is empty, possibly because it "
                "was saved from a disabled instance of GradScaler."
            )
        self._scale = _fp32(state_dict["scale"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._growth_tracker = int(state_dict["_growth_tracker"])

    def __repr__(self) -> str:
        return f"GradScaler(scale={self.get_scale()}, enabled={self._enabled})"


def _fp32(value: float) -> float:
    """Round to fp32, in which PyTorch keeps the factor."""
    try:
        rounded: float = struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return float("inf")
    return rounded
