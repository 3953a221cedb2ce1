# SPDX-License-Identifier: Apache-2.0
"""Tensors and NumPy's arrays: memory that is shared, copies, other buffers."""

from __future__ import annotations

import numpy as np
import pytest

import paceline
from unit import cases

DTYPES = cases.DTYPES


@pytest.mark.parametrize("name", [d for d in DTYPES if d != "bfloat16"])
def test_numpy_shares_memory(name: str) -> None:
    t = paceline.zeros(2, 3, dtype=getattr(paceline, name))
    a = t.numpy()
    assert a.dtype == np.dtype(name)
    assert a.shape == (2, 3)
    a[1, 2] = 1
    assert t[1, 2].item() == 1


def test_numpy_of_views_and_zero_dim() -> None:
    t = paceline.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(t.t().numpy(), np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(t[:, ::2].numpy(), np.arange(12).reshape(3, 4)[:, ::2])
    assert paceline.tensor(3.5).numpy().shape == ()
    assert paceline.zeros(0, 3).numpy().shape == (0, 3)


def test_numpy_keeps_the_memory() -> None:
    a = paceline.full((1000,), 7).numpy()
    paceline.zeros(1000)
    assert (a == 7).all()


def test_numpy_refusals() -> None:
    with pytest.raises(RuntimeError, match="detach"):
        paceline.ones(2, requires_grad=True).numpy()
    with pytest.raises(TypeError, match="float"):
        paceline.ones(2, dtype=paceline.bfloat16).numpy()
    forced = paceline.ones(2, dtype=paceline.bfloat16, requires_grad=True).numpy(force=True)
    assert forced.dtype == np.float32


def test_array_protocol() -> None:
    t = paceline.arange(3.0)
    a = np.asarray(t)
    a[0] = 5
    assert t[0].item() == 5
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert np.array(t).base is not a
    assert np.asarray(t.bfloat16().float()).dtype == np.float32


def test_from_numpy_shares_and_tensor_copies() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared, copied = paceline.from_numpy(a), paceline.tensor(a)
    a[0, 0] = 9
    assert shared[0, 0].item() == 9
    assert copied[0, 0].item() == 0
    assert paceline.as_tensor(a)[0, 0].item() == 9
    np.testing.assert_array_equal(paceline.from_numpy(a.T).numpy(), a.T)
    np.testing.assert_array_equal(paceline.from_numpy(a[:, 1:]).numpy(), a[:, 1:])


def test_numbers_and_arrays_of_numpy_as_operands() -> None:
    t = paceline.arange(3.0)
    for out in (t * np.float32(2), np.float32(2) * t, np.float64(2) * t):
        assert out.dtype is paceline.float32
        assert out.tolist() == [0, 2, 4]
    assert (t / np.int64(2)).tolist() == [0, 0.5, 1]
    assert type(t * np.ones(3)) is paceline.Tensor
    assert t[np.array([2, 0])].tolist() == [2, 0]
    assert t[np.int64(1)].item() == 1
    assert t.sum(dim=np.int64(0)).item() == 3
    assert t.sum(axis=0).item() == 3
    assert paceline.arange(np.int64(3)).dtype is paceline.int64
    assert paceline.zeros(np.int64(2), 3).shape == (2, 3)
    assert paceline.randint(0, np.int64(2), (3,)).shape == (3,)


@pytest.mark.parametrize("bad", [np.zeros(2, np.complex64), np.array(["a"]), [1.0], 3])
def test_from_numpy_refuses(bad: object) -> None:
    with pytest.raises(TypeError):
        paceline.from_numpy(bad)


def test_arrays_that_cannot_be_shared_are_copied() -> None:
    whole = np.arange(12.0).reshape(3, 4)
    fixed = whole.copy()
    fixed.flags.writeable = False
    for a in (whole[::-1], whole[:, ::-2], fixed, whole.astype(">f4"), np.ones(3, np.int16)):
        for t in (paceline.tensor(a), paceline.as_tensor(a)):
            np.testing.assert_array_equal(t.numpy(), a)
            t.zero_()
    assert fixed.any()
    assert paceline.tensor(np.ones(3, np.uint64)).dtype is paceline.int64
    with pytest.raises(OverflowError):
        paceline.tensor(np.full(3, 2**63, np.uint64))
    with pytest.warns(UserWarning, match="not writable"):
        paceline.from_numpy(fixed)
    for bad in (np.zeros(2, complex), np.array(["a"]), np.array([None])):
        with pytest.raises(TypeError, match="array of"):
            paceline.tensor(bad)


def test_buffers() -> None:
    raw = bytearray(range(8))
    t = paceline.frombuffer(raw, dtype=paceline.uint8, count=3, offset=2)
    assert t.tolist() == [2, 3, 4]
    raw[2] = 99
    assert t[0].item() == 99
    assert paceline.frombuffer(raw, dtype=paceline.int32).shape == (2,)
    assert paceline.tensor(range(3)).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="multiple of 4"):
        paceline.frombuffer(raw, dtype=paceline.int32, offset=1)
    with pytest.raises(ValueError, match="at least 12"):
        paceline.frombuffer(raw, dtype=paceline.int32, count=3)
    with pytest.raises(TypeError, match="bfloat16"):
        paceline.frombuffer(raw, dtype=paceline.bfloat16)
