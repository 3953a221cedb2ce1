# SPDX-License-Identifier: Apache-2.0
"""Random shapes, strides and broadcasts against NumPy, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import paceline
from numerics.compare import UNIT, array, assert_close
from paceline import _C

BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum}
sizes = st.integers(0, 5)
shapes = st.lists(sizes, max_size=4).map(tuple)


@st.composite
def broadcastable(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast: each dimension equal, or 1 in one, or missing."""
    full = draw(st.lists(sizes, max_size=4))
    pair = []
    for _ in range(2):
        one = [1 if draw(st.booleans()) else n for n in full]
        pair.append(tuple(one[draw(st.integers(0, len(one))) :]))
    return pair[0], pair[1]


@st.composite
def strided(draw: Any, shape: tuple[int, ...], seed: int) -> tuple[paceline.Tensor, np.ndarray]:
    """A tensor of this shape whose memory is permuted, stepped or offset, and its array."""
    rng = np.random.default_rng(seed)
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 2)) for _ in shape]
    starts = [draw(st.integers(0, 1)) for _ in shape]
    memory = [shape[d] * steps[d] + starts[d] for d in order]
    base = rng.standard_normal(memory)
    t, a = paceline.from_numpy(base), base
    back = [list(order).index(d) for d in range(len(shape))]
    t, a = t.permute(back) if shape else t, a.transpose(back) if shape else a
    for d in range(len(shape)):
        stop = starts[d] + shape[d] * steps[d]
        t = _C.slice(t, d, starts[d], stop, steps[d])
        a = a[(slice(None),) * d + (slice(starts[d], stop, steps[d]),)]
    return t, a


@given(st.data(), broadcastable(), st.sampled_from(sorted(BINARY)))
def test_binary(data: Any, pair: tuple[tuple[int, ...], tuple[int, ...]], op: str) -> None:
    (x, ax), (y, ay) = data.draw(strided(pair[0], 1)), data.draw(strided(pair[1], 2))
    got = getattr(_C, op)(x, y)
    want = BINARY[op](ax, ay)
    assert got.shape == want.shape
    assert np.array_equal(got.numpy(), want)  # one rounding each: the same bits


@given(st.data(), broadcastable())
def test_gradient_of_a_broadcast_product(data: Any, pair: Any) -> None:
    (x, ax), (y, ay) = data.draw(strided(pair[0], 3)), data.draw(strided(pair[1], 4))
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    (x * y).sum().backward()
    ones = np.ones(np.broadcast_shapes(ax.shape, ay.shape))
    for leaf, other in ((x, ay), (y, ax)):
        full = ones * other
        lead = full.ndim - leaf.ndim
        axes = tuple(range(lead)) + tuple(
            lead + d for d in range(leaf.ndim) if leaf.shape[d] == 1 and full.shape[lead + d] != 1
        )
        want = full.sum(axis=axes, keepdims=False).reshape(leaf.shape)
        assert leaf.grad is not None
        assert_close(array(leaf.grad), want, 256 * UNIT["float64"], "product")


@given(st.data(), shapes, st.sampled_from(["sum", "mean", "amax"]))
def test_reduction(data: Any, shape: tuple[int, ...], op: str) -> None:
    t, a = data.draw(strided(shape, 5))
    dims = data.draw(st.sets(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape)))
    keep = data.draw(st.booleans())
    if not a.size:  # sums of nothing are 0; means and maxima of nothing are NumPy's warnings
        op = "sum"
    chosen = tuple(sorted(dims)) if dims else None
    got = getattr(_C, op)(t, list(chosen) if chosen else None, keep)
    want = {"sum": np.sum, "mean": np.mean, "amax": np.max}[op](a, axis=chosen, keepdims=keep)
    assert_close(array(got), np.asarray(want), 256 * UNIT["float64"], op)


@given(st.data(), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), broadcastable())
def test_matmul(data: Any, m: int, k: int, n: int, batch: Any) -> None:
    a_shape, b_shape = (*batch[0][-2:], m, k), (*batch[1][-2:], k, n)
    (x, ax), (y, ay) = data.draw(strided(a_shape, 6)), data.draw(strided(b_shape, 7))
    assert_close(array(x @ y), np.matmul(ax, ay), 64 * UNIT["float64"], "matmul")


@given(st.data(), shapes)
def test_copies_and_views_keep_every_element(data: Any, shape: tuple[int, ...]) -> None:
    t, a = data.draw(strided(shape, 8))
    assert np.array_equal(t.contiguous().numpy(), a)
    assert np.array_equal(t.reshape(-1).numpy(), a.reshape(-1))
    for dtype, kind in ((paceline.float32, np.float32), (paceline.int64, np.int64)):
        assert np.array_equal(t.to(dtype).numpy(), a.astype(kind))
    assert np.array_equal(t.numpy(), a)  # a view of the same memory, strides and all
