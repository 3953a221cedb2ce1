# SPDX-License-Identifier: Apache-2.0
"""Questions about GPUs, as scripts ask them. This build has none, and says so."""

from __future__ import annotations

from paceline.errors import DeviceError

__all__ = [
    "current_device",
    "device_count",
    "empty_cache",
    "is_available",
    "is_bf16_supported",
    "manual_seed",
    "manual_seed_all",
    "synchronize",
]


def is_available() -> bool:
    """Whether tensors can be placed on a GPU."""
    return False


def device_count() -> int:
    """Number of GPUs that can be used."""
    return 0


def is_bf16_supported() -> bool:
    """Whether the current GPU computes in bfloat16."""
    return False


def current_device() -> int:
    """Index of the current GPU.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    raise DeviceError("[cuda.current_device] this build has no CUDA: got no device, expected one")


def synchronize(device: object = None) -> None:
    """Wait for the GPU.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    raise DeviceError("[cuda.synchronize] this build has no CUDA: got no device, expected one")


def empty_cache() -> None:
    """Give cached GPU memory back; nothing to do where there is no GPU."""


def manual_seed(seed: int) -> None:
    """Seed the current GPU; nothing to do where there is none (as in PyTorch)."""


def manual_seed_all(seed: int) -> None:
    """Seed all GPUs; nothing to do where there is none (as in PyTorch)."""
