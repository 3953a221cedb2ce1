# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 (what a method does is said once, in the Engine protocol)
"""The part of the native engine that checkpoints need: states of models and of generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline import _C
from paceline.random import default_generator

__all__ = ["NativeState"]


class NativeState:
    """See ``Engine``; the methods are described there by their names."""

    def state_dict(self, model: Any) -> dict[str, Any]:
        state: dict[str, Any] = model.state_dict()
        return state

    def buffers(self, model: Any) -> dict[str, Any]:
        saved = model.state_dict().keys()
        return {name: buffer for name, buffer in model.named_buffers() if name in saved}

    def load_state_dict(self, model: Any, state: Mapping[str, Any], strict: bool) -> None:
        model.load_state_dict(state, strict=strict)

    def gradients(self, model: Any) -> dict[str, Any]:
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def set_gradients(self, model: Any, named: Mapping[str, Any]) -> None:
        for name, parameter in model.named_parameters():
            grad = named.get(name)
            if grad is not None:
                grad = _C.to_device(grad, parameter._device_index, False)
            parameter.grad = grad

    def to_core(self, tensor: Any) -> Any:
        return tensor

    def from_core(self, tensor: Any) -> Any:
        return tensor

    def rng_state(self) -> Any:
        return default_generator.get_state()

    def set_rng_state(self, state: Any) -> None:
        if not isinstance(state, _C.Tensor):
            raise ValueError(f"[set_rng_state] got {type(state).__name__}, expected a tensor")
        default_generator.set_state(state)

    def seed(self, seed: int) -> None:
        default_generator.manual_seed(seed)
