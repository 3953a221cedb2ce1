# SPDX-License-Identifier: Apache-2.0
"""Where a tensor is to go: the arguments of ``to``, and page-locked memory.

Knows the core's tensors, no class over them.
"""

from __future__ import annotations

from paceline import _C, _device
from paceline.dtypes import to_code

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor


class Wanted:
    """What ``to`` was asked for: the core's index of a device or None, a dtype's code or -1."""

    __slots__ = ("code", "copy", "index", "non_blocking")

    def __init__(self, index: int | None, code: int, non_blocking: bool, copy: bool) -> None:
        self.index = index
        self.code = code
        self.non_blocking = non_blocking
        self.copy = copy


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wanted:
    """Arguments of ``to``; a GPU that they name is opened."""
    device, code = kwargs.pop("device", None), to_code(kwargs.pop("dtype", None))
    copy = bool(kwargs.pop("copy", False))
    non_blocking = bool(kwargs.pop("non_blocking", False))
    kwargs.pop("memory_format", None)
    index: int | None = None
    if "other" in kwargs:
        args = (kwargs.pop("other"), *args)
    if kwargs:
        raise TypeError(f"[to] unknown argument: got {sorted(kwargs)[0]!r}")
    flags: list[bool] = []
    for arg in args:
        if isinstance(arg, _C.Tensor):
            code, index = arg._dtype, arg._device_index
        elif isinstance(arg, bool):
            flags.append(arg)  # non_blocking, copy
        elif isinstance(arg, (str, int)) or _device.is_device(arg):
            device = arg
        elif arg is not None:
            code = to_code(arg)
    if flags:
        non_blocking = flags[0]
    if len(flags) > 1:
        copy = flags[1]
    if device is not None:
        index = _device.place("to", device)
    return Wanted(index, code, non_blocking, copy)


def pinned(t: Any) -> Tensor:
    """`t` in page-locked memory; itself on the GPU, and where there is no GPU."""
    if t._device_index >= 0 or t._is_pinned:
        return t  # type: ignore[no-any-return]
    from paceline import cuda

    if not cuda.is_initialized() and not cuda.is_available():
        return t  # type: ignore[no-any-return]
    _device.open_gpu("pin_memory", _device.current())
    return _C.pin_memory(t)
