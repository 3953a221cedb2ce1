# SPDX-License-Identifier: Apache-2.0
"""The GPU of this process, with PyTorch's names: one per process, opened at its first use.

Counting GPUs and asking whether there is one does not touch the driver where Linux tells without
it, so that a process that only asked can still fork. What a device is stands in ``_device.py``.
"""

from __future__ import annotations

import os

from paceline import _C, _device
from paceline.cuda.graphs import (
    CUDAGraph,
    graph,
    is_current_stream_capturing,
    make_graphed_callables,
)
from paceline.cuda.memory import (
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
from paceline.cuda.streams import (
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
    from collections.abc import Iterable
    from typing import Any

    from paceline._tensor import Tensor
    from paceline.cuda import amp

    Where = str | int | _device.device | None

__all__ = [
    "CUDAGraph",
    "DeviceProperties",
    "Event",
    "OutOfMemoryError",
    "Stream",
    "StreamContext",
    "amp",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "graph",
    "init",
    "initial_seed",
    "ipc_collect",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "make_graphed_callables",
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
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
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


class device:  # noqa: N801 (PyTorch's name)
    """``with cuda.device(0):``: the GPU that is meant inside, which is this process's one.

    Raises
    ------
    DeviceError
        Where it is another one than this process uses, or there is none.
    """

    def __init__(self, device: Where) -> None:
        index = None if device is None else _device.index_of("cuda.device", device)
        self.idx = -1 if index is None else index

    def __enter__(self) -> None:
        if self.idx >= 0:  # -1: as outside
            init()
            set_device(self.idx)

    def __exit__(self, *_: object) -> None:
        pass


def init() -> None:
    """Open the GPU that ``"cuda"`` stands for; the first tensor on it does so too.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    _device.open_gpu("cuda.init", _device.index_of("cuda.init", None))


def ipc_collect() -> None:
    """Nothing to do: memory of a GPU is not shared between processes."""


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


def seed() -> None:
    """Seed random numbers from the system's entropy: ``paceline.seed``; without a GPU nothing."""
    if is_available():
        from paceline.random import seed

        seed()


def seed_all() -> None:
    """As `seed`: a process has one GPU."""
    seed()


def initial_seed() -> int:
    """The seed of random numbers: ``paceline.initial_seed``."""
    from paceline.random import initial_seed

    return initial_seed()


def get_rng_state(device: Where = "cuda") -> Tensor:
    """Seed and place of the stream of random numbers, which is also the CPU's."""
    from paceline.random import get_rng_state

    return get_rng_state()


def set_rng_state(new_state: _C.Tensor, device: Where = "cuda") -> None:
    """Go on from what `get_rng_state` gave.

    Raises
    ------
    ValueError
        If it is not that.
    """
    from paceline.random import set_rng_state

    set_rng_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """`get_rng_state` of each GPU of this process: of one, or of none."""
    return [get_rng_state()] if is_available() else []


def set_rng_state_all(new_states: Iterable[_C.Tensor]) -> None:
    """Go on from what `get_rng_state_all` gave."""
    for state in new_states:
        set_rng_state(state)


def __getattr__(name: str) -> Any:
    if name == "amp":  # it needs autocast, which needs this module
        import paceline.cuda.amp as amp

        return amp
    raise AttributeError(f"module 'paceline.cuda' has no attribute {name!r}")
