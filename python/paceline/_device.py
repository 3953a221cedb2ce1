# SPDX-License-Identifier: Apache-2.0
"""Devices: the class, and the check that a device can be used here. Knows no tensor."""

from __future__ import annotations

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


def check(op: str, where: str | int | device | None) -> device:
    """The device that an argument stands for.

    Raises
    ------
    DeviceError
        If tensors cannot be placed there.
    """
    if where is None or where is CPU:
        return CPU
    d = where if isinstance(where, device) else device(where)
    if d.type != "cpu":
        raise DeviceError(
            f"[{op}] this build has no CUDA: got device {str(d)!r}, expected 'cpu' "
            "(device = 'cuda' if paceline.cuda.is_available() else 'cpu' works everywhere)"
        )
    return CPU
