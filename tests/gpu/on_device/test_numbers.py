# SPDX-License-Identifier: Apache-2.0
"""Numbers of the host beside tensors on the GPU, on either side, as on the CPU: bit for bit."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paceline
from gpu.place import on_gpu, on_host

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv", "eq", "lt", "ge")
}
# Exact in fp32 on both: the functions of the GPU may round otherwise.
EXACT = [name for name in OPERATORS if name != "pow"]
FLOATS = [paceline.float32, paceline.float64, paceline.bfloat16, paceline.float16]


def tensors(dtype: paceline.dtype) -> list[paceline.Tensor]:
    base = paceline.arange(1.0, 25.0).reshape(4, 6).to(dtype)
    return [base, base.transpose(0, 1), base[1:3, ::2], base[0, 0], base[:0]]


@pytest.mark.parametrize(
    "dtype", [*FLOATS, paceline.int64, paceline.int32, paceline.uint8], ids=str
)
@pytest.mark.parametrize("name", EXACT)
def test_numbers_on_either_side(name: str, dtype: paceline.dtype) -> None:
    call = OPERATORS[name]
    numbers: list[Any] = [3, 0.7, True, paceline.tensor(2.5), paceline.tensor(3, dtype=dtype)]
    if name not in ("mod", "floordiv"):  # whose quotients may be rounded otherwise
        numbers += [np.float32(1.25), math.inf, 6.1e-5, -5.96e-8, -math.inf, 1e30]
    for x in tensors(dtype):
        moved = on_gpu(x)
        for number in numbers:
            for swap in (False, True):
                want = call(number, x) if swap else call(x, number)
                got = call(number, moved) if swap else call(moved, number)
                assert got.dtype is want.dtype
                assert got._device_index == 0
                np.testing.assert_array_equal(
                    on_host(got).double().numpy(), want.double().numpy(), f"{number} {swap}"
                )


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "pow"])
def test_gradients(name: str) -> None:
    call = OPERATORS[name]
    for swap in (False, True):
        found = []
        for gpu in (False, True):
            x, number = paceline.arange(1.0, 7.0), paceline.tensor(1.5).requires_grad_()
            x = (on_gpu(x) if gpu else x).requires_grad_()
            out = call(number, x) if swap else call(x, number)
            (out * 2).sum().backward()
            assert x.grad is not None
            assert number.grad is not None
            assert number.grad._device_index == -1
            found.append([on_host(x.grad).numpy(), number.grad.numpy()])
        for want, got in zip(*found, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-6)


def test_in_place() -> None:
    for dtype in FLOATS:
        x = on_gpu(paceline.arange(1.0, 7.0).to(dtype))
        x *= 0.5
        x += paceline.tensor(2.0)
        x -= 1
        x /= 4
        assert x.tolist() == [(0.5 * k + 1) / 4 for k in range(1, 7)]
    own = on_gpu(paceline.tensor([2.0, 4.0, 8.0]))
    own /= own[0]
    assert own.tolist() == [1.0, 2.0, 4.0]
    zero = on_gpu(paceline.tensor(3.0))
    zero *= 2
    assert zero.item() == 6.0
    with pytest.raises(
        RuntimeError, match="lies on cuda:0 and does not fit in place in a tensor of"
    ):
        paceline.tensor(1.0).mul_(on_gpu(paceline.tensor(2.0)))


def test_division_by_a_number_that_is_zero() -> None:
    x = on_gpu(paceline.arange(3))
    _ = x // 0
    with pytest.raises(ValueError, match="integer division by zero"):
        paceline.cuda.synchronize()
