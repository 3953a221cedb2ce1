# SPDX-License-Identifier: Apache-2.0
"""Every operator: value against NumPy and the oracle, gradient against finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import paceline
from numerics.compare import UNIT, array, assert_close, tensor
from numerics.op_table import CASES, NOT_DIFFERENTIABLE, Case, cases_of
from paceline import _C

LOW = [paceline.bfloat16, paceline.float16]


def by_label(case: Case) -> str:
    return case.label.replace(" ", "-")


@pytest.fixture
def oracle() -> Iterator[None]:
    _C.use_kernels("ref")
    yield
    _C.use_kernels("cpu")


def inputs(case: Case, dtype: object, seed: int = 0) -> list[paceline.Tensor]:
    arrays = case.small(np.random.default_rng(seed))
    return [
        tensor(a, paceline.float64 if i in case.cast and a.dtype.kind == "f" else dtype)
        for i, a in enumerate(arrays)
    ]


def test_every_operator_stands_in_the_table() -> None:
    missing = [op for op in _C.op_names() if not cases_of(op)]
    assert not missing, f"operators without a case in op_table.py: {missing}"
    unknown = {case.op for case in CASES} - set(_C.op_names())
    assert not unknown


def test_every_operator_has_a_benchmark() -> None:
    missing = [op for op in _C.op_names() if not any(c.big for c in cases_of(op))]
    assert not missing, f"operators without inputs for the benchmark: {missing}"


@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_value_in_fp64_is_numpys(case: Case) -> None:
    arrays = case.small(np.random.default_rng(0))
    got = case.call(*inputs(case, paceline.float64))
    # fp64 against fp64: both sides round, in another order; library functions differ by an ulp.
    assert_close(array(got), case.numpy(*arrays), 64 * UNIT["float64"], case.label)


@pytest.mark.parametrize("case", CASES, ids=by_label)
@pytest.mark.usefixtures("oracle")
def test_the_oracle_agrees_with_numpy(case: Case) -> None:
    arrays = case.small(np.random.default_rng(0))
    got = case.call(*inputs(case, paceline.float64))
    assert_close(array(got), case.numpy(*arrays), 64 * UNIT["float64"], case.label)


@pytest.mark.parametrize("dtype", [paceline.float32, *LOW], ids=str)
@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_value_against_the_oracle(case: Case, dtype: paceline.dtype) -> None:
    args = inputs(case, dtype, seed=1)
    got = case.call(*args)
    _C.use_kernels("ref")
    try:
        want = case.call(*args)
    finally:
        _C.use_kernels("cpu")
    assert got.dtype == want.dtype
    name = str(dtype).removeprefix("paceline.")
    # The oracle rounds each operator's result once from double; the device computes in fp32 and
    # may round `spread` times on the way (a chain of operators rounds its intermediates).
    assert_close(array(got), array(want), case.spread * 2 * UNIT[name], case.label)


def numeric_gradient(case: Case, arrays: list[np.ndarray], k: int, w: np.ndarray) -> np.ndarray:
    """Central differences of sum(w * f(x)) by x[k]; h balances truncation h^2 and rounding."""
    h = 1e-5
    out = np.zeros_like(arrays[k])
    for at in np.ndindex(*arrays[k].shape):
        values = []
        for sign in (1.0, -1.0):
            moved = [a.copy() for a in arrays]
            moved[k][at] += sign * h
            args = [tensor(a, paceline.float64) for a in moved]
            values.append(float((array(case.call(*args)) * w).sum()))
        out[at] = (values[0] - values[1]) / (2 * h)
    return out


@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_gradient_against_finite_differences(case: Case) -> None:
    rng = np.random.default_rng(2)
    arrays = case.small(rng)
    args = [tensor(a, paceline.float64) for a in arrays]
    skip = NOT_DIFFERENTIABLE.get(case.label, ())
    wanted = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and k not in skip]
    for k in wanted:
        args[k].requires_grad_()
    out = case.call(*args)
    w = rng.standard_normal(out.shape)
    out.backward(tensor(np.asarray(w), paceline.float64))
    for k in wanted:
        want = numeric_gradient(case, arrays, k, w)
        got = args[k].grad
        assert got is not None
        # 1e-7: truncation h^2 = 1e-10 times third derivatives of order 10, rounding 1e-16/h.
        assert_close(array(got), want, 1e-7, f"{case.label}, input {k}")


@pytest.mark.parametrize("dtype", [paceline.float32, *LOW], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.op != "to_dtype"], ids=by_label)
def test_gradient_in_low_precision_follows_fp64(case: Case, dtype: paceline.dtype) -> None:
    rng = np.random.default_rng(3)
    arrays = case.small(rng)
    # Both runs see the same rounded inputs, so only the computation's own rounding differs.
    low = [tensor(a, dtype) for a in arrays]
    high = [t.double() if t.dtype.is_floating_point else t for t in low]
    skip = NOT_DIFFERENTIABLE.get(case.label, ())
    wanted = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and k not in skip]
    seed = None
    for args in (high, low):
        for k in wanted:
            args[k].requires_grad_()
        out = case.call(*args)
        if seed is None:
            seed = tensor(rng.standard_normal(out.shape), dtype).double()
        out.backward(seed.to(out.dtype))
    name = str(dtype).removeprefix("paceline.")
    for k in wanted:
        # A gradient rule chains up to four operators, each rounding at its own magnitude; a
        # broadcast input sums up to 24 such terms.
        bound = case.spread * 16 * UNIT[name]
        assert_close(array(low[k].grad), array(high[k].grad), bound, f"{case.label}, input {k}")
