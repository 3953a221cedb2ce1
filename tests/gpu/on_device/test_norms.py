# SPDX-License-Identifier: Apache-2.0
"""Norms with the sum before them on the GPU, where the two inputs differ in dtype."""

from __future__ import annotations

import pytest

import paceline
import paceline.nn.functional as F
from gpu.place import both
from numerics.compare import UNIT, array, assert_close

Tensor = paceline.Tensor
DTYPES = [paceline.bfloat16, paceline.float16, paceline.float32]


def layer(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return F.fused_add_layer_norm(x, r, (x.shape[-1],), w)


def rms(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return F.fused_add_rms_norm(x, r, (x.shape[-1],), w)


# Rows that one warp holds, in packs and not, and that a block holds.
@pytest.mark.parametrize("width", [40, 33, 1088])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [layer, rms])
def test_a_wide_residual(norm: object, dtype: paceline.dtype, width: int) -> None:
    paceline.manual_seed(3)
    shapes = [(3, width), (3, width), (width,)]
    x, r, w = (paceline.randn(*s).requires_grad_() for s in shapes)
    x = x.to(dtype).detach().requires_grad_()

    def call(*args: Tensor) -> Tensor:
        with paceline.autocast("cuda", paceline.bfloat16):
            normed, total = norm(*args)  # type: ignore[operator]
        assert normed.dtype == total.dtype == paceline.float32
        return normed + total

    want, got = both(call, [x, r, w])
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        assert a.dtype == b.dtype
        # Sums of `width` terms in another order, then one rounding to the dtype.
        unit = UNIT[str(a.dtype).removeprefix("paceline.")]
        assert_close(array(b), array(a), 4 * unit + width * UNIT["float32"], f"result {i}")
