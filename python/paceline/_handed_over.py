# SPDX-License-Identifier: Apache-2.0
"""A mark on a state dict, between who reads checkpoints and who takes their tensors over."""

from __future__ import annotations

from typing import Any

__all__ = ["HandedOver"]


class HandedOver(dict[Any, Any]):
    """A state dict whose tensors nobody else holds: who loads it may keep them without a copy."""
