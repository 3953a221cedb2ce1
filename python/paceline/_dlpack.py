# SPDX-License-Identifier: Apache-2.0
"""DLPack: memory shared with other libraries' tensors, both ways and without a copy.

Follows the Python side of DLPack (https://dmlc.github.io/dlpack/latest/python_spec.html) and
`from_dlpack` of the array API standard. Knows no other library by name.
"""

from __future__ import annotations

from paceline import _C, _device

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor

__all__ = ["DEVICE", "from_dlpack", "lend"]

#: DLPack's name of the CPU: device type and index.
DEVICE = (1, 0)
_VERSION = (1, 0)


def lend(
    tensor: Tensor,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """Give the capsule that ``Tensor.__dlpack__`` promises."""
    if tensor.requires_grad:
        raise BufferError(
            "[__dlpack__] a tensor that requires grad cannot be shared, for the other library "
            "would not record its gradient: use tensor.detach()"
        )
    if tensor._device_index >= 0:
        raise BufferError(
            f"[__dlpack__] device: got {tensor.device}, expected the CPU: GPU memory is not shared "
            "with other libraries yet, use tensor.cpu()"
        )
    if stream is not None:
        raise BufferError(f"[__dlpack__] stream: got {stream!r}, expected None on the CPU")
    if dl_device is not None and tuple(dl_device) != DEVICE:
        raise BufferError(f"[__dlpack__] dl_device: got {dl_device}, expected {DEVICE} (the CPU)")
    plain = _C.clone(tensor) if copy else tensor
    return _C.to_dlpack(plain, max_version is not None and max_version[0] >= _VERSION[0])


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's tensor.

    Parameters
    ----------
    x : object with ``__dlpack__``, or a DLPack capsule
        A CPU tensor or array of at most 8 dimensions.
    device : str or device, optional
        Where the result shall be; a copy if that is not the CPU.
    copy : bool, optional
        True copies always, False never. By default only memory that may not be written is copied,
        for a tensor here can always be written to.

    Returns
    -------
    Tensor
        It keeps the other library's memory alive.

    Raises
    ------
    BufferError
        When `x` is on another device, of a dtype that is not known here (complex, int16), has a
        negative stride, or ``copy=False`` and it may not be written.
    TypeError
        When `x` has no ``__dlpack__``.

    Examples
    --------
    >>> import paceline
    >>> a = paceline.zeros(3)
    >>> b = paceline.from_dlpack(a)
    >>> b += 1
    >>> a
    tensor([1., 1., 1.])
    """
    index = _device.place("from_dlpack", device)
    tensor, read_only = _C.from_dlpack(_capsule_of(x))
    if copy is False and read_only:
        raise BufferError(
            "[from_dlpack] copy=False, but the memory may not be written and a tensor here always "
            "may: pass copy=True"
        )
    tensor = _C.clone(tensor) if copy or (read_only and index < 0) else tensor
    return _C.to_device(tensor, index, False)


def _capsule_of(x: Any) -> Any:
    if type(x).__name__ == "PyCapsule":
        return x
    lends = getattr(x, "__dlpack__", None)
    if lends is None:
        raise TypeError(
            f"[from_dlpack] got {type(x).__name__}, expected an object with __dlpack__ or a capsule"
        )
    # Asked before the capsule is made: making one for a GPU may wait for it.
    kind = x.__dlpack_device__()[0] if hasattr(x, "__dlpack_device__") else DEVICE[0]
    if int(kind) != DEVICE[0]:
        raise BufferError(
            f"[from_dlpack] device: got DLPack device type {int(kind)}, expected 1 (the CPU): move "
            "the tensor to the CPU first"
        )
    try:
        return lends(max_version=_VERSION)
    except TypeError:  # a library from before DLPack 1.0
        return lends()
