# SPDX-License-Identifier: Apache-2.0
"""Devices: the class, and opening the one GPU of a process at its first use. Knows no tensor."""

from __future__ import annotations

import functools
import os

from paceline.errors import DeviceError

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

_TYPES = ("cpu", "cuda")


class device:  # noqa: N801 (PyTorch's name)
    """Where a tensor lives.

    Parameters
    ----------
    type : str or device or int
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``; a number stands for a GPU's index.
    index : int, optional
        Index of the device, where `type` does not hold it.

    Examples
    --------
    >>> device("cuda:1")
    device(type='cuda', index=1)
    """

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | int | device, index: int | None = None) -> None:
        if isinstance(type, device) or is_device(type):
            named: Any = type
            kind, number = named.type, named.index
        elif isinstance(type, int):
            kind, number = "cuda", type
        elif isinstance(type, str):
            kind, colon, tail = type.partition(":")
            if colon and not tail.isdecimal():
                raise RuntimeError(f"[device] index: got {type!r}, expected the like of 'cuda:0'")
            number = int(tail) if colon else None
        else:
            raise TypeError(f"[device] got {type!r}, expected the like of 'cpu' or 'cuda:0'")
        if kind not in _TYPES:
            raise RuntimeError(f"[device] type: got {kind!r}, expected 'cpu' or 'cuda'")
        if index is not None and number is not None and isinstance(type, str):
            raise RuntimeError(f"[device] the index is given twice: got {type!r} and {index}")
        self.type = kind
        self.index = number if index is None else index

    def __repr__(self) -> str:
        tail = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{tail})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other: object) -> bool:
        if not is_device(other):
            return NotImplemented
        named: Any = other
        return bool(self.type == named.type and self.index == named.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self) -> tuple[object, ...]:
        return device, (str(self),)


def is_device(obj: Any) -> bool:
    """Whether an object names a device: one of ours, or another library's."""
    return isinstance(getattr(obj, "type", None), str) and hasattr(obj, "index")


CPU = device("cpu")
_gpus: list[device] = []  # device("cuda", i) at i
_preferred: int | None = None  # what set_device chose


def named(index: int) -> device:
    """The device of an index of the core's: -1 is the CPU, i ``cuda:i``."""
    if index < 0:
        return CPU
    while len(_gpus) <= index:
        _gpus.append(device("cuda", len(_gpus)))
    return _gpus[index]


def prefer(index: int) -> None:
    """Let ``"cuda"`` stand for a GPU."""
    global _preferred
    _preferred = index


def current() -> int:
    """The GPU that ``"cuda"`` stands for: the open one, the chosen one, or this rank's."""
    from paceline import _C

    opened = _C.cuda_current()
    if opened >= 0:
        return opened
    if _preferred is not None:
        return _preferred
    rank = os.environ.get("LOCAL_RANK", "")
    index = int(rank) if rank.isdecimal() else 0
    if index:
        # A scheduler may have given each process one GPU of its own, which all call 0.
        from paceline.cuda import device_count

        return 0 if device_count() == 1 else index
    return 0


def index_of(op: str, where: str | int | device | None) -> int:
    """The GPU that an argument stands for; it is not opened.

    Raises
    ------
    ValueError
        If it names another kind of device.
    """
    d = where if isinstance(where, device) else device("cuda" if where is None else where)
    if d.type != "cuda":
        raise ValueError(f"[{op}] device: got {str(d)!r}, expected the like of 'cuda:0'")
    return current() if d.index is None else d.index


def no_gpu(op: str, wanted: object) -> DeviceError:
    """The error where this process cannot use a GPU, with what is missing."""
    from paceline import _cuda_libraries, cuda

    missing = "this build has no CUDA"
    if _cuda_libraries.has_kernels():
        missing = cuda.why_unused() or "there is no GPU that CUDA shows"
    return DeviceError(
        f"[{op}] {missing}: got device {str(wanted)!r}, expected 'cpu' "
        "(device = 'cuda' if paceline.cuda.is_available() else 'cpu' works everywhere; "
        "paceline env shows what is missing)"
    )


_forked = False  # from a process that had used CUDA


def _note_fork() -> None:
    global _forked
    _forked = True


@functools.cache
def will_be_used() -> None:
    """Note that CUDA's driver is about to be asked: children that are forked later cannot use it.

    Each would hang or crash in the driver, so they are refused; see `open_gpu`.
    """
    os.register_at_fork(after_in_child=_note_fork)


def open_gpu(op: str, index: int) -> int:
    """Open a GPU, where this process has not; gives its index.

    Raises
    ------
    DeviceError
        If it cannot be used, or the process uses another one.
    """
    from paceline import _C

    if _forked:
        raise DeviceError(
            f"[{op}] CUDA cannot be used in a forked process: got a fork of a process that has "
            "used it, expected a fresh one (multiprocessing's start method 'spawn', "
            "notebook_launcher or paceline launch), or a fork from before the first use"
        )
    if index != _C.cuda_current():
        from paceline import _cuda_libraries

        if not _cuda_libraries.has_kernels():
            raise no_gpu(op, named(index))
        _cuda_libraries.tell()
        _C.cuda_open(_cuda_libraries.kernels(), index)
    return index


def place(op: str, where: str | int | device | None) -> int:
    """The index at which the core makes a tensor: -1 for the CPU; a GPU is opened.

    Raises
    ------
    DeviceError
        If tensors cannot be placed there.
    """
    if where is None or where is CPU:
        return -1
    d = where if isinstance(where, device) else device(where)
    if d.type == "cpu":
        return -1
    return open_gpu(op, current() if d.index is None else d.index)
