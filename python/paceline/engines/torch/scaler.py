# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own scaler of fp16 losses, for models on a GPU: it does not wait for the device.

On the CPU paceline's own (``training/grad_scaler.py``) serves both libraries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

__all__ = ["TorchGradScaler"]


class TorchGradScaler(torch.amp.GradScaler):
    """``torch.amp.GradScaler``, with what ``LossScaling`` asks of a scaler."""

    def found_inf(self, optimizer: Any) -> bool:
        """Whether a gradient of the optimizer was NaN or infinite since the last ``update``."""
        flags = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
        return any(bool(flag.item()) for flag in flags)

    def is_unscaled(self, optimizer: Any) -> bool:
        """Whether the optimizer's gradients have been unscaled since the last ``update``."""
        return self._per_optimizer_states[id(optimizer)]["stage"] is not OptState.READY
