# SPDX-License-Identifier: Apache-2.0
"""The GPU of this process, with PyTorch's names: one per process, opened at its first use.

Counting GPUs and asking whether there is one does not touch the driver where Linux tells without
it, so that a process that only asked can still fork. What a device is stands in ``_device.py``.
"""

from __future__ import annotations

import os

from paceline import _C, _device
from paceline._cuda_memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_peak_memory_stats,
)
from paceline._cuda_streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    set_stream,
    stream,
)
from paceline.errors import DeviceError

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    Where = str | int | _device.device | None

__all__ = [
    "DeviceProperties",
    "Event",
    "OutOfMemoryError",
    "Stream",
    "StreamContext",
    "current_device",
    "current_stream",
    "default_stream",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_peak_memory_stats",
    "set_device",
    "set_stream",
    "stream",
    "synchronize",
    "why_unused",
]

_OLDEST_DRIVER = 580  # the first of CUDA 13

#: What a tensor that does not fit raises, on either device.
OutOfMemoryError = MemoryError


class DeviceProperties:
    """What a GPU is: ``name major minor total_memory multi_processor_count``."""

    __slots__ = ("major", "minor", "multi_processor_count", "name", "total_memory")

    def __init__(self, told: dict[str, Any]) -> None:
        self.name: str = told["name"]
        self.major: int = told["major"]
        self.minor: int = told["minor"]
        self.total_memory: int = told["memory"]
        self.multi_processor_count: int = told["processors"]

    def __repr__(self) -> str:
        return (
            f"DeviceProperties(name={self.name!r}, major={self.major}, minor={self.minor}, "
            f"total_memory={self.total_memory >> 20}MB, "
            f"multi_processor_count={self.multi_processor_count})"
        )


# -- what there is ----------------------------------------------------------------------------


def _must_be_asked() -> bool:
    # Of a library that was named, and of Windows' GPUs, Linux tells nothing.
    from paceline import _gpus

    return bool(os.environ.get("PACELINE_CUDA_LIBRARY")) or _gpus.only_the_driver_knows()


def device_count() -> int:
    """Number of GPUs that can be used: 0 where something that they need is missing."""
    from paceline import _cuda_libraries, _gpus

    if not _cuda_libraries.has_kernels():
        return 0
    if is_initialized() or _must_be_asked():
        try:
            return _C.cuda_device_count(_cuda_libraries.kernels())
        except DeviceError:
            return 0
    version = _gpus.driver_version()
    if version is None or int(version.partition(".")[0]) < _OLDEST_DRIVER:
        return 0
    return len(_gpus.visible(os.environ))


def is_available() -> bool:
    """Whether tensors can be placed on a GPU."""
    return device_count() > 0


def why_unused() -> str | None:
    """Say why the GPUs of this machine cannot be used; None where there are none, or they can.

    Hidden by ``CUDA_VISIBLE_DEVICES`` is not a reason: that was somebody's wish.
    """
    from paceline import _cuda_libraries, _gpus

    if not _gpus.installed():
        return None
    if not _cuda_libraries.has_kernels():
        return "this build of paceline has no CUDA (docs/build.md)"
    version = _gpus.driver_version()
    if version is None or int(version.partition(".")[0]) >= _OLDEST_DRIVER:
        return None
    return f"the NVIDIA driver is too old: got {version}, expected {_OLDEST_DRIVER} or later"


def is_initialized() -> bool:
    """Whether this process has opened its GPU."""
    return _C.cuda_current() >= 0


def _properties(device: Where) -> dict[str, Any]:
    from paceline import _cuda_libraries

    index = _device.index_of("cuda", device)
    return _C.cuda_properties(_cuda_libraries.kernels(), index)


def get_device_properties(device: Where = None) -> DeviceProperties:
    """Name, capability, memory and number of processors of a GPU; by default of the current one.

    Raises
    ------
    DeviceError
        Where there is no such GPU.
    """
    return DeviceProperties(_properties(device))


def get_device_name(device: Where = None) -> str:
    """Name of a GPU."""
    return str(_properties(device)["name"])


def get_device_capability(device: Where = None) -> tuple[int, int]:
    """Compute capability of a GPU, such as ``(9, 0)``."""
    told = _properties(device)
    return told["major"], told["minor"]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current GPU computes in bfloat16."""
    return is_available() and get_device_capability()[0] >= 8


# -- the one that is used ---------------------------------------------------------------------


def current_device() -> int:
    """Index of the GPU that ``"cuda"`` stands for.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    if not is_initialized() and not is_available():
        raise _device.no_gpu("cuda.current_device", "cuda")
    return _device.current()


def set_device(device: Where) -> None:
    """Choose the GPU that ``"cuda"`` stands for, before the first tensor is placed on it.

    Raises
    ------
    DeviceError
        Where this process uses another one already.
    """
    index = _device.index_of("cuda.set_device", device)
    if is_initialized() and index != _C.cuda_current():
        raise DeviceError(
            f"[cuda.set_device] one device per process: got cuda:{index}, expected "
            f"cuda:{_C.cuda_current()}, which is in use already; start one process per device "
            "(paceline launch does)"
        )
    _device.prefer(index)


def synchronize(device: Where = None) -> None:
    """Wait for the GPU, and raise what its kernels complained of.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    _device.open_gpu("cuda.synchronize", _device.index_of("cuda.synchronize", device))
    _C.cuda_synchronize()


# -- random numbers ---------------------------------------------------------------------------


def manual_seed(seed: int) -> None:
    """Seed random numbers on the GPU; nothing to do where there is none (as in PyTorch).

    CPU and GPU draw from one stream, so that a run gives the same numbers on either: this is
    ``paceline.manual_seed``.
    """
    if is_available():
        from paceline.random import manual_seed

        manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """As `manual_seed`: a process has one GPU."""
    manual_seed(seed)
