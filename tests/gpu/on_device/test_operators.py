# SPDX-License-Identifier: Apache-2.0
"""Every operator of the table, forward and backward, on the GPU as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import paceline
from gpu.place import both
from numerics.compare import UNIT, array, assert_close, tensor
from numerics.op_table import CASES, NOT_DIFFERENTIABLE, Case
from paceline import _C


def by_label(case: Case) -> str:
    return case.label.replace(" ", "-")


def inputs(case: Case, dtype: paceline.dtype) -> list[paceline.Tensor]:
    skip = NOT_DIFFERENTIABLE.get(case.label, ())
    args = []
    for i, a in enumerate(case.small(np.random.default_rng(5))):
        kept = i in case.cast and a.dtype.kind == "f"
        t = tensor(a, paceline.float64 if kept else dtype)
        args.append(t.requires_grad_() if a.dtype.kind == "f" and i not in skip else t)
    return args


@pytest.mark.parametrize(
    "dtype",
    [paceline.float64, paceline.float32, paceline.bfloat16, paceline.float16],
    ids=lambda d: str(d).removeprefix("paceline."),
)
@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_operator(case: Case, dtype: paceline.dtype) -> None:
    want, got = both(case.call, inputs(case, dtype))
    assert len(want) == len(got)
    # Both sides round as often; library functions and the order of a sum differ. fp64 sums are
    # compared with fp64 sums, of which 64 roundings are the most that a case makes.
    spread = 64 if dtype == paceline.float64 else 4 * case.spread
    for i, (w, g) in enumerate(zip(want, got, strict=True)):
        assert g.dtype == w.dtype
        unit = UNIT[str(w.dtype).removeprefix("paceline.")]
        assert_close(array(g), array(w), spread * unit, f"{case.label}, result {i}")


PLAIN = [
    ("sign", lambda x: _C.sign(x)), ("floor", lambda x: _C.floor(x)),
    ("ceil", lambda x: _C.ceil(x)), ("round", lambda x: _C.round(x)),
    ("logical_not", lambda x: _C.logical_not(x)), ("isnan", lambda x: _C.isnan(x)),
    ("isfinite", lambda x: _C.isfinite(x)), ("remainder", lambda x: x % 0.7),
    ("floor_divide", lambda x: x // 0.7), ("eq", lambda x: x == x.t().t()),
    ("lt a number", lambda x: x < 0.3), ("number minus", lambda x: 2.5 - x),
    ("and", lambda x: (x > 0) & (x < 1)), ("not", lambda x: ~(x > 0)),
    ("any", lambda x: _C.any(x > 1, None, False)), ("all", lambda x: _C.all(x > -9, [0], True)),
    ("argmax", lambda x: _C.argmax(x, 1, False)), ("argmin", lambda x: _C.argmin(x, None, False)),
    ("sort", lambda x: _C.sort(x, 1, True)[0]), ("argsort", lambda x: _C.sort(x, 0, False)[1]),
    ("nonzero", lambda x: _C.nonzero(x > 0)), ("stack", lambda x: _C.stack([x, x], 1)),
    ("index_select", lambda x: _C.index_select(x, 1, _C.arange(0, 4, 3, 3, x._device_index))),
    ("masked", lambda x: x[x > 0]), ("a row", lambda x: x[2]), ("strided", lambda x: x[::2, 1:]),
    ("a list", lambda x: x[[3, 0]]), ("int", lambda x: _C.to_dtype(x, 3)),
    ("bool", lambda x: _C.to_dtype(x, 0)), ("contiguous", lambda x: _C.contiguous(x.t())),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call"), PLAIN, ids=[name for name, _ in PLAIN])
def test_without_a_gradient(name: str, call: object) -> None:
    x = tensor(np.random.default_rng(3).standard_normal((4, 5)), paceline.float32)
    want, got = both(call, [x])  # type: ignore[arg-type]
    assert got[0].dtype == want[0].dtype
    assert got[0].tolist() == want[0].tolist(), name


def test_the_table_of_operators_is_what_the_cpu_has() -> None:
    """One that only the CPU has would be found by nobody but its user."""
    assert {case.op for case in CASES} == set(_C.op_names())
