# SPDX-License-Identifier: Apache-2.0
"""get_scheduler: schedules by the names that transformers gives them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from paceline.optim.lr_scheduler import LambdaLR
from paceline.optim.optimizer import Optimizer

__all__ = ["get_scheduler"]

Factor = Callable[[int], float]


def _linear(warmup: int, total: int) -> Factor:
    return lambda step: max(0.0, (total - step) / max(1, total - warmup))


def _cosine(warmup: int, total: int, num_cycles: float = 0.5) -> Factor:
    def factor(step: int) -> float:
        progress = (step - warmup) / max(1, total - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))

    return factor


def _restarts(warmup: int, total: int, num_cycles: int = 1) -> Factor:
    def factor(step: int) -> float:
        progress = (step - warmup) / max(1, total - warmup)
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))))

    return factor


def _polynomial(
    warmup: int, total: int, top: float, lr_end: float = 1e-7, power: float = 1.0
) -> Factor:
    if not top > lr_end:
        raise ValueError(f"lr_end ({lr_end}) must be smaller than initial lr ({top})")

    def factor(step: int) -> float:
        if step > total:
            return lr_end / top
        left = 1 - (step - warmup) / (total - warmup)
        shape: float = left**power
        return ((top - lr_end) * shape + lr_end) / top

    return factor


def _after_warmup(warmup: int, rest: Factor) -> Factor:
    return lambda step: step / max(1, warmup) if step < warmup else rest(step)


def _of_length(factor: Factor, step: int, num_training_steps: int) -> float:
    # The length is a keyword, as in transformers, so that it can be read off the schedule.
    return factor(step)


_NEEDS_TOTAL = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
}
_NAMES = ("constant", "constant_with_warmup", *_NEEDS_TOTAL)


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LambdaLR:
    """A schedule by name.

    Parameters
    ----------
    name : str
        ``"linear"``, ``"cosine"``, ``"cosine_with_restarts"``, ``"polynomial"``,
        ``"constant"``, ``"constant_with_warmup"``.
    optimizer : Optimizer
        Whose rates are set.
    num_warmup_steps : int, optional
        Steps during which the rate grows from 0; all but ``"constant"`` need it.
    num_training_steps : int, optional
        Steps until the end; all but the constant ones need it.
    scheduler_specific_kwargs : dict, optional
        ``num_cycles`` for the cosines, ``lr_end`` and ``power`` for the polynomial.

    Raises
    ------
    ValueError
        If the name is not known or a number that it needs is missing.
    """
    name = getattr(name, "value", name)
    if name not in _NAMES:
        raise ValueError(f"[get_scheduler] name: got {name!r}, expected one of {list(_NAMES)}")
    extra = dict(scheduler_specific_kwargs or {})
    if name == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    if num_warmup_steps is None:
        raise ValueError(f"{name} requires `num_warmup_steps`, please provide that argument.")
    if name == "constant_with_warmup":
        return LambdaLR(optimizer, _after_warmup(num_warmup_steps, lambda step: 1.0))
    if num_training_steps is None:
        raise ValueError(f"{name} requires `num_training_steps`, please provide that argument.")
    if name == "polynomial":
        extra["top"] = optimizer.defaults["lr"]
    make: Callable[..., Factor] = _NEEDS_TOTAL[name]  # type: ignore[assignment]
    rest = make(num_warmup_steps, num_training_steps, **extra)
    factor = functools.partial(_of_length, _after_warmup(num_warmup_steps, rest))
    return LambdaLR(optimizer, functools.partial(factor, num_training_steps=num_training_steps))
