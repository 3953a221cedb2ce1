# SPDX-License-Identifier: Apache-2.0
"""DLPack both ways: the same memory, the deleter exactly once, and clear refusals."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest

import paceline
from paceline import _C

DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
SHAPES = [(), (0,), (5,), (2, 3), (2, 0, 3), (1, 2, 3, 4)]


def made(shape: tuple[int, ...], dtype: str) -> paceline.Tensor:
    count = 1
    for size in shape:
        count *= size
    return paceline.arange(count).reshape(shape).to(getattr(paceline, dtype))


class Lender:
    """Stands for another library: its capsule is an edited copy of one of ours."""

    def __init__(self, tensor: Any, versioned: bool = True) -> None:
        self.capsule = _C.to_dlpack(tensor, versioned)
        name = b"dltensor_versioned" if versioned else b"dltensor"
        self.at: int = _pointer(ctypes.py_object(self.capsule), name)
        # Where the tensor begins in the struct: behind major, minor, ctx, deleter, flags, or first.
        self.tensor_at = self.at + (32 if versioned else 0)

    def write(self, offset: int, kind: Any, value: int) -> None:
        kind.from_address(self.tensor_at + offset).value = value

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        return self.capsule


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("versioned", [True, False])
def test_a_round_trip_is_the_same_memory(
    dtype: str, shape: tuple[int, ...], versioned: bool
) -> None:
    a = made(shape, dtype)
    b, read_only = _C.from_dlpack(_C.to_dlpack(a, versioned))
    assert not read_only
    assert (b.shape, b.dtype, b.stride()) == (a.shape, a.dtype, a.stride())
    assert b.data_ptr() == a.data_ptr()
    assert b.tolist() == a.tolist()


def test_views_keep_their_strides_and_the_memory_outlives_the_lender() -> None:
    base = paceline.arange(24).reshape(2, 3, 4)
    view = base.transpose(0, 2)[1:]
    expected = view.tolist()
    taken = paceline.from_dlpack(view)
    assert taken.stride() == view.stride()
    del base, view
    gc.collect()
    assert taken.tolist() == expected


def test_expanded_dimensions_come_as_stride_zero() -> None:
    taken = paceline.from_dlpack(paceline.ones(3, 1).expand(3, 4))
    assert taken.stride() == (1, 0)
    assert taken.sum().item() == 12


def test_a_capsule_that_nobody_takes_gives_its_tensor_back() -> None:
    before = _C.live_objects()["tensor"]
    for versioned in (True, False):
        capsule = _C.to_dlpack(paceline.zeros(3), versioned)
        assert _C.live_objects()["tensor"] == before + 1
        del capsule
    assert _C.live_objects()["tensor"] == before


def test_a_capsule_is_taken_once() -> None:
    capsule = paceline.ones(2).__dlpack__()
    kept = paceline.from_dlpack(capsule)
    with pytest.raises(BufferError, match="nobody has taken yet"):
        paceline.from_dlpack(capsule)
    del capsule
    assert kept.tolist() == [1, 1]


def test_a_tensor_that_requires_grad_is_not_lent() -> None:
    with pytest.raises(BufferError, match=r"use tensor.detach\(\)"):
        paceline.zeros(2, requires_grad=True).__dlpack__()


def test_arguments_of_dlpack() -> None:
    a = paceline.zeros(2)
    assert a.__dlpack_device__() == (1, 0)
    assert "dltensor_versioned" in repr(a.__dlpack__(max_version=(1, 2)))
    assert '"dltensor"' in repr(a.__dlpack__(max_version=(0, 8)))
    copied = paceline.from_dlpack(a.__dlpack__(copy=True, dl_device=(1, 0)))
    assert copied.data_ptr() != a.data_ptr()
    with pytest.raises(BufferError, match="dl_device: got"):
        a.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream: got 1, expected None"):
        a.__dlpack__(stream=1)


def test_memory_that_may_not_be_written_is_copied() -> None:
    a = paceline.ones(3)
    lender = Lender(a)
    ctypes.c_uint64.from_address(lender.at + 24).value = 1  # flags: read only
    taken = paceline.from_dlpack(lender)
    taken += 1
    assert a.tolist() == [1, 1, 1]
    again = Lender(a)
    ctypes.c_uint64.from_address(again.at + 24).value = 1
    with pytest.raises(BufferError, match="copy=False, but the memory may not be written"):
        paceline.from_dlpack(again, copy=False)


def test_missing_strides_mean_row_major_and_the_offset_counts() -> None:
    a = paceline.arange(7, dtype=paceline.float32)
    lender = Lender(a, versioned=False)
    lender.write(32, ctypes.c_void_p, 0)  # strides
    lender.write(40, ctypes.c_uint64, 8)  # byte_offset
    ctypes.c_int64.from_address(ctypes.c_void_p.from_address(lender.tensor_at + 24).value).value = 5
    assert paceline.from_dlpack(lender).tolist() == [2, 3, 4, 5, 6]


def _set_version(lender: Lender) -> None:
    ctypes.c_uint32.from_address(lender.at).value = 2


def _set_stride(lender: Lender) -> None:
    strides = ctypes.c_void_p.from_address(lender.tensor_at + 32).value
    ctypes.c_int64.from_address(strides).value = -1


REFUSALS: list[tuple[Callable[[Lender], Any], str]] = [
    (lambda o: o.write(8, ctypes.c_int32, 4), "got DLPack device type 4, expected 1"),
    (lambda o: o.write(8, ctypes.c_int32, 2), "no GPU is open in this process: got a capsule of"),
    (lambda o: o.write(16, ctypes.c_int32, 9), "got 9 dimensions, at most 8"),
    (lambda o: o.write(20, ctypes.c_uint8, 5), "got complex32"),
    (lambda o: o.write(21, ctypes.c_uint8, 16), "got int16"),
    (lambda o: o.write(22, ctypes.c_uint16, 4), "4 lanes"),
    (lambda o: o.write(40, ctypes.c_uint64, 1), "not aligned to elements of 4 bytes"),
    (_set_version, "DLPack version: got 2.0, expected 1.x"),
    (_set_stride, "got size 3 and stride -1, expected none below 0"),
]


@pytest.mark.parametrize(("edit", "message"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_what_cannot_be_held_is_refused_and_given_back(
    edit: Callable[[Lender], Any], message: str
) -> None:
    lender = Lender(paceline.arange(3, dtype=paceline.int32))
    edit(lender)
    with pytest.raises(BufferError, match=message):
        paceline.from_dlpack(lender)


def test_other_objects_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="got list, expected an object with __dlpack__"):
        paceline.from_dlpack([1, 2])

    class OnGpu:
        def __dlpack__(self) -> None:
            raise AssertionError("asked for a capsule")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (4, 0)

    with pytest.raises(BufferError, match="got DLPack device type 4"):
        paceline.from_dlpack(OnGpu())


def test_a_library_from_before_versions_is_asked_again_without() -> None:
    a = paceline.ones(2)

    class Old:
        def __dlpack__(self) -> Any:
            return a.__dlpack__()

    assert paceline.from_dlpack(Old()).data_ptr() == a.data_ptr()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_both_ways(dtype: str, shape: tuple[int, ...]) -> None:
    np = pytest.importorskip("numpy")
    ours = made(shape, dtype)
    theirs = np.from_dlpack(ours)
    assert (theirs.shape, theirs.dtype.name) == (shape, dtype)
    back = paceline.from_dlpack(theirs) if theirs.flags.writeable else ours
    assert back.tolist() == ours.tolist() == theirs.tolist()
    array = np.ones((2, 3), dtype=dtype).T
    taken = paceline.from_dlpack(array)
    taken[0, 1] = 0
    assert array[0, 1] == 0
    with pytest.raises(BufferError):
        paceline.from_dlpack(array[::-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_both_ways(dtype: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    ours = made(shape, dtype)
    theirs = torch.from_dlpack(ours)
    assert (tuple(theirs.shape), theirs.dtype) == (shape, getattr(torch, dtype))
    assert theirs.numel() == 0 or theirs.data_ptr() == ours.data_ptr()
    assert theirs.tolist() == ours.tolist()
    mine = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)).T
    taken = paceline.from_dlpack(mine)
    assert taken.stride() == mine.stride()
    taken[2, 1] = 0
    assert mine[2, 1].item() == 0
    assert taken.tolist() == mine.tolist()


def test_torch_complex_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BufferError, match="got complex64"):
        paceline.from_dlpack(torch.zeros(2, dtype=torch.complex64))


def test_repeated_exchange_leaks_nothing() -> None:
    torch = pytest.importorskip("torch")
    a, b = paceline.zeros(1000), torch.zeros(1000)
    before = _C.live_objects()
    for _ in range(200):
        torch.from_dlpack(a).add_(1)
        paceline.from_dlpack(b).add_(1)
        a.__dlpack__()
    assert a[0].item() == b[0].item() == 200
    assert _C.live_objects() == before
