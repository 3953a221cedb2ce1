# SPDX-License-Identifier: Apache-2.0
"""Memory of the GPU: what the allocator tells, under PyTorch's names.

Opens a GPU only where asked for that GPU's free memory.
"""

from __future__ import annotations

from paceline import _C, _device

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    Where = str | int | _device.device | None

__all__ = [
    "empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_peak_memory_stats",
]

# PyTorch's name of a statistic, and the core's.
_STATISTICS = (
    ("allocated_bytes.all.current", "allocated"),
    ("allocated_bytes.all.peak", "peak"),
    ("reserved_bytes.all.current", "reserved"),
    ("reserved_bytes.all.peak", "reserved_peak"),
    ("allocation.all.current", "blocks"),
    ("segment.all.current", "segments"),
    ("num_device_alloc", "mallocs"),
    ("num_device_free", "frees"),
    ("num_alloc_retries", "retries"),
    ("num_ooms", "failures"),
)


def _told(name: str, reset_peak: bool = False) -> int:
    return _C.cuda_memory(reset_peak)[name] if _C.cuda_current() >= 0 else 0


def memory_allocated(device: Where = None) -> int:
    """Bytes in tensors on the GPU."""
    return _told("allocated")


def max_memory_allocated(device: Where = None) -> int:
    """The most that `memory_allocated` was, since `reset_peak_memory_stats`."""
    return _told("peak")


def memory_reserved(device: Where = None) -> int:
    """Bytes asked of the GPU and not given back: tensors, and what is kept free for the next."""
    return _told("reserved")


def max_memory_reserved(device: Where = None) -> int:
    """The most that `memory_reserved` was, since `reset_peak_memory_stats`."""
    return _told("reserved_peak")


def reset_peak_memory_stats(device: Where = None) -> None:
    """Let the peaks begin at what there is now."""
    _told("peak", reset_peak=True)


def mem_get_info(device: Where = None) -> tuple[int, int]:
    """Free and total bytes of the GPU, of all processes.

    Raises
    ------
    DeviceError
        Where there is none.
    """
    _device.open_gpu("cuda.mem_get_info", _device.index_of("cuda.mem_get_info", device))
    told = _C.cuda_memory(False)
    return told["free"], told["total"]


def empty_cache() -> None:
    """Give free memory back to the GPU; nothing to do where none was opened.

    Memory comes from the GPU in segments that tensors share (of 2 MiB and 20 MiB, and larger ones
    for large tensors); those in which no tensor lies go back.
    """
    if _C.cuda_current() >= 0:
        _C.cuda_trim()


def memory_stats(device: Where = None) -> dict[str, int]:
    """What the allocator counts, under PyTorch's names; empty where no GPU was opened.

    Of PyTorch's statistics those that mean the same here: bytes in tensors and asked of the GPU,
    each with its peak (``allocated_bytes.all``, ``reserved_bytes.all``); how many tensors' blocks
    and segments there are (``allocation.all``, ``segment.all``); how often the GPU was asked for a
    segment and given one back (``num_device_alloc``, ``num_device_free``), was full at first
    (``num_alloc_retries``), and was full all the same (``num_ooms``).
    """
    if _C.cuda_current() < 0:
        return {}
    told = _C.cuda_memory(False)
    return {name: told[ours] for name, ours in _STATISTICS}


def memory_summary(device: Where = None, abbreviated: bool = False) -> str:
    """`memory_stats` as a table to print."""
    stats = memory_stats()
    if not stats:
        return "no GPU was opened in this process"
    lines = [f"memory of cuda:{_C.cuda_current()}"]
    for name, value in stats.items():
        shown = f"{value / (1 << 20):12.1f} MiB" if "bytes" in name else f"{value:12d}"
        lines.append(f"  {name:<30}{shown}")
    return "\n".join(lines)
