# SPDX-License-Identifier: Apache-2.0
"""GPU memory shared by DLPack: lent, taken, its streams, and what is refused."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest

import paceline as torch


class Dl(ctypes.Structure):
    """DLManagedTensor, as another library makes it: DLTensor, context, deleter."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("index", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Foreign:
    """A 2 x 3 float32 tensor of another library, over memory of the GPU."""

    def __init__(self, memory: torch.Tensor, device: tuple[int, int] = (2, 0)) -> None:
        self.device, self.streams, self.deleted = device, list[Any](), 0
        self.shape = (ctypes.c_int64 * 2)(2, 3)
        self.keep = DELETER(self._delete)
        self.managed = Dl(
            data=memory.data_ptr(), device=device[0], index=device[1], ndim=2, code=2, bits=32,
            lanes=1, shape=ctypes.addressof(self.shape), offset=4,
            deleter=ctypes.cast(self.keep, ctypes.c_void_p).value,
        )  # fmt: skip

    def _delete(self, at: int) -> None:
        assert at == ctypes.addressof(self.managed)
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return _new(ctypes.addressof(self.managed), b"dltensor", None)


def test_between_two_tensors() -> None:
    a = torch.arange(12.0, device="cuda").reshape(3, 4)
    assert a.__dlpack_device__() == (2, 0)
    view = a.t()[1:]
    b = torch.from_dlpack(view)
    assert b.device == a.device
    assert b.data_ptr() == view.data_ptr()
    assert b.stride() == view.stride()
    assert b.tolist() == view.tolist()
    b += 100
    assert a[0].tolist() == [0, 101, 102, 103]
    c = torch.from_dlpack(a, copy=True)
    assert c.data_ptr() != a.data_ptr()
    assert torch.from_dlpack(a, device="cpu").tolist() == a.tolist()
    assert torch.from_dlpack(torch.ones(2), device="cuda").device.type == "cuda"
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64):
        x = torch.ones(3, device="cuda").to(dtype)
        assert torch.from_dlpack(x.__dlpack__()).dtype == dtype
        assert torch.from_dlpack(x.__dlpack__(max_version=(1, 0))).tolist() == x.tolist()


def test_another_librarys_memory() -> None:
    memory = torch.arange(8.0, device="cuda")
    side = torch.cuda.Stream()
    foreign = Foreign(memory)
    taken = torch.from_dlpack(foreign)
    with torch.cuda.stream(side):
        also = torch.from_dlpack(foreign)
    here = torch.cuda.current_stream().cuda_stream
    assert foreign.streams == [here, side.cuda_stream]
    assert str(taken.device) == "cuda:0"
    assert taken.data_ptr() == memory.data_ptr() + 4
    assert taken.tolist() == [[1, 2, 3], [4, 5, 6]]
    taken.mul_(2)
    assert also.tolist() == [[2, 4, 6], [8, 10, 12]]
    y = (taken @ taken.t()).sum()
    del taken
    gc.collect()
    assert foreign.deleted == 1
    assert y.item() == sum((2 * k + 2 * k + 6) ** 2 for k in (1, 2, 3))
    del also
    gc.collect()
    assert foreign.deleted == 2


def test_memory_outlives_who_lent_it() -> None:
    x = torch.full((64,), 3.0, device="cuda")
    taken = torch.from_dlpack(x.__dlpack__(stream=1))
    del x
    other = torch.full((64,), 5.0, device="cuda")
    assert taken.tolist() == [3.0] * 64
    before = torch.cuda.memory_allocated()
    del taken
    assert torch.cuda.memory_allocated() < before
    del other


@pytest.mark.parametrize("stream", [None, -1, 1, 2])
def test_streams_that_may_be_named(stream: int | None) -> None:
    x = torch.ones(2, device="cuda")
    assert torch.from_dlpack(x.__dlpack__(stream=stream)).tolist() == [1, 1]


def test_refusals() -> None:
    x = torch.ones(2, device="cuda")
    for stream in (0, -2, "1", True, 1.0):
        with pytest.raises(BufferError, match=r"stream: got .*, expected None, -1"):
            x.__dlpack__(stream=stream)
    with pytest.raises(BufferError, match=r"dl_device: got \(2, 1\) with copy=None, expected"):
        x.__dlpack__(dl_device=(2, 1))
    with pytest.raises(BufferError, match="with copy=False, expected"):
        x.__dlpack__(dl_device=(1, 0), copy=False)
    assert torch.from_dlpack(x.__dlpack__(dl_device=(1, 0))).device.type == "cpu"
    with pytest.raises(BufferError, match="copy=False, but the memory is on cuda:0"):
        torch.from_dlpack(x, device="cpu", copy=False)
    with pytest.raises(BufferError, match="requires grad cannot be shared"):
        x.clone().requires_grad_().__dlpack__()
    memory = torch.zeros(8, device="cuda")
    with pytest.raises(torch.errors.DeviceError):  # no such GPU, or not this process's
        torch.from_dlpack(Foreign(memory, (2, 7)))
    with pytest.raises(BufferError, match="got memory of cuda:7, expected cuda:0"):
        torch.from_dlpack(Foreign(memory, (2, 7)).__dlpack__())
    for kind in (3, 10, 13):  # pinned, ROCm, managed
        with pytest.raises(BufferError, match=f"got DLPack device type {kind}, expected 1"):
            torch.from_dlpack(Foreign(memory, (kind, 0)))
        with pytest.raises(BufferError, match=f"got DLPack device type {kind}, expected 1"):
            torch.from_dlpack(Foreign(memory, (kind, 0)).__dlpack__())
