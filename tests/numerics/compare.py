# SPDX-License-Identifier: Apache-2.0
"""How numbers are compared: bounds from the dtype's rounding, and NaN always fails."""

from __future__ import annotations

from typing import Any

import numpy as np

import paceline

# One rounding to nearest: half the distance between neighbours, relative.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}


def array(t: Any) -> np.ndarray:
    """A tensor as float64."""
    return np.asarray(t.detach().double().numpy(), dtype=np.float64)


def tensor(a: np.ndarray, dtype: Any) -> Any:
    """An array as a tensor; integer arrays keep their dtype."""
    t = paceline.from_numpy(np.array(a, order="C"))
    return t if a.dtype.kind in "iub" else t.to(dtype)


def assert_close(got: Any, want: Any, bound: float, what: str) -> None:
    """|got - want| <= bound * (largest magnitude of want), elementwise; shapes must agree.

    Measured against the largest element, since a sum's error scales with its largest terms and
    not with what is left after they cancel.
    """
    g, w = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert g.shape == w.shape, f"{what}: shape {g.shape}, expected {w.shape}"
    if not w.size:
        return
    scale = max(float(np.abs(w).max()), 1e-30)
    err = float(np.abs(g - w).max()) / scale
    # Written so that NaN fails.
    assert err <= bound, f"{what}: error {err:.3g} of the largest element, allowed {bound:.3g}"
