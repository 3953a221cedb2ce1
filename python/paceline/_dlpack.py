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

__all__ = ["from_dlpack", "lend"]

_CPU, _CUDA = 1, 2  # DLPack's device types
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
    tensor = _where_it_is_wanted(tensor, dl_device, copy)
    plain = _C.clone(tensor) if copy else tensor
    if tensor._device_index >= 0:
        _hand_over(plain, stream)
    elif stream is not None:
        raise BufferError(f"[__dlpack__] stream: got {stream!r}, expected None on the CPU")
    return _C.to_dlpack(plain, max_version is not None and max_version[0] >= _VERSION[0])


def _where_it_is_wanted(
    tensor: Tensor, dl_device: tuple[int, int] | None, copy: bool | None
) -> Tensor:
    here = tensor.__dlpack_device__()
    if dl_device is None or tuple(dl_device) == here:
        return tensor
    if tuple(dl_device) == (_CPU, 0) and copy is not False:
        return tensor.cpu()
    raise BufferError(
        f"[__dlpack__] dl_device: got {dl_device} with copy={copy}, expected {here}"
        + ("" if here[0] == _CPU else f", or {(_CPU, 0)} (the CPU) by a copy")
    )


def _hand_over(tensor: Tensor, stream: Any) -> None:
    """Let the consumer's stream wait for what is on the current one."""
    if stream is None:
        stream = 1  # CUDA's legacy default stream, as the array API standard has it
    if type(stream) is not int or stream < -1 or stream == 0:
        raise BufferError(
            f"[__dlpack__] stream: got {stream!r}, expected None, -1 (no waiting), 1 or 2 (CUDA's "
            "default streams) or a cudaStream_t as a number (0 would not say which default)"
        )
    if stream > 0:
        _C.cuda_stream_lend(tensor, stream)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's tensor.

    Parameters
    ----------
    x : object with ``__dlpack__``, or a DLPack capsule
        A tensor or array of at most 8 dimensions, on the CPU or on this process's GPU. Where it
        is on a GPU, the current stream waits for what its library computed; of a bare capsule
        that was arranged when it was made.
    device : str or device, optional
        Where the result shall be, by default where it is; elsewhere is a copy.
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
        When `x` is on a device that this process does not use, of a dtype that is not known here
        (complex, int16), has a negative stride, or ``copy=False`` and it may not be written.
    TypeError
        When `x` has no ``__dlpack__``.
    DeviceError
        When `x` is on a GPU that cannot be opened here.

    Examples
    --------
    >>> import paceline
    >>> a = paceline.zeros(3)
    >>> b = paceline.from_dlpack(a)
    >>> b += 1
    >>> a
    tensor([1., 1., 1.])
    """
    tensor, read_only = _C.from_dlpack(_capsule_of(x))
    index = tensor._device_index
    wanted = index if device is None else _device.place("from_dlpack", device)
    if copy is False and (read_only or wanted != index):
        raise BufferError(
            "[from_dlpack] copy=False, but the memory may not be written and a tensor here always "
            "may: pass copy=True"
            if read_only
            else f"[from_dlpack] copy=False, but the memory is on {tensor.device}: got device "
            f"{str(device)!r}, expected the same"
        )
    if copy or (read_only and wanted == index):
        tensor = _C.clone(tensor)
    return _C.to_device(tensor, wanted, False)


def _capsule_of(x: Any) -> Any:
    if type(x).__name__ == "PyCapsule":
        return x
    lends = getattr(x, "__dlpack__", None)
    if lends is None:
        raise TypeError(
            f"[from_dlpack] got {type(x).__name__}, expected an object with __dlpack__ or a capsule"
        )
    kind, index = x.__dlpack_device__() if hasattr(x, "__dlpack_device__") else (_CPU, 0)
    if int(kind) not in (_CPU, _CUDA):
        raise BufferError(
            f"[from_dlpack] device: got DLPack device type {int(kind)}, expected 1 (the CPU) or 2 "
            "(CUDA): move the tensor to the CPU first"
        )
    told = {}
    if int(kind) == _CUDA:
        _device.open_gpu("from_dlpack", int(index))
        told["stream"] = _C.cuda_stream_handle(_C.cuda_stream_current())
    try:
        return lends(max_version=_VERSION, **told)
    except TypeError:  # a library from before DLPack 1.0
        return lends(**told)
