# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch in objects that pass between machines.

PyTorch pickles a tensor as a call of ``torch.load``, which no machine may let another one make; so
they are taken apart into dtype, shape and bytes. Device, strides and graph stay behind.
"""

from __future__ import annotations

from typing import Any

import torch

from paceline.distributed import closed_pickle


def _apart(tensor: torch.Tensor) -> tuple[Any, ...]:
    held = tensor.detach().cpu().contiguous().reshape(-1)
    content = held.view(torch.uint8).numpy().tobytes() if held.numel() else b""
    return together, (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content)


def together(dtype: str, shape: tuple[int, ...], content: bytes) -> torch.Tensor:
    """Make the tensor that was taken apart."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"[pickle] dtype of a tensor: got {dtype!r}")
    if not content:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(content), dtype=kind).reshape(shape)


closed_pickle.register(torch.Tensor, _apart, (__name__, "together"), ("torch", "Size"))
