# SPDX-License-Identifier: Apache-2.0
"""What a step on a GPU met, read when it has come to the host: nobody waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paceline import _C

__all__ = ["LateLook"]


class LateLook:
    """Numbers on their way from a GPU: what an update saw of gradients, and losses.

    Parameters
    ----------
    told : list of (list of Tensor, Tensor)
        Parameters, and a number for each of them, not 0 where its gradient was not finite.
    losses : list of Tensor
        One number each.
    """

    def __init__(self, told: Sequence[tuple[list[Any], Any]], losses: Sequence[Any]) -> None:
        self._told = [(params, _C.to_host_later(flags)) for params, flags in told]
        self._losses = [
            _C.to_host_later(loss) if loss._device_index >= 0 else loss for loss in losses
        ]

    def arrived(self) -> bool:
        """Whether the answers are there."""
        flags = [flags for _, flags in self._told]
        return all(_C.has_arrived(t) for t in [*flags, *self._losses])

    def wait(self) -> None:
        """Wait until they are."""
        if not self.arrived():
            _C.cuda_synchronize()

    def bad_loss(self) -> str | None:
        """Give the last loss that was not finite, as text."""
        values = [loss.item() for loss in self._losses]
        bad = [str(value) for value in values if not math.isfinite(value)]
        return bad[-1] if bad else None

    def bad_parameters(self) -> list[Any]:
        """Give the parameters whose gradients were not finite."""
        pairs = [
            pair
            for params, flags in self._told
            for pair in zip(params, flags.tolist(), strict=True)
        ]
        return [p for p, bad in pairs if bad]
