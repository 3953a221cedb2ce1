# SPDX-License-Identifier: Apache-2.0
"""Norms with the sum before them: one kernel, and all that two calls would give and record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from paceline import Tensor

WIDTH = 40
BF16, F32, F64 = paceline.bfloat16, paceline.float32, paceline.float64
Pair = tuple[Tensor, Tensor]
Norm = Callable[[Tensor, Tensor, Tensor, Tensor], Pair]


def layer(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Pair:
    return F.fused_add_layer_norm(x, r, (WIDTH,), w, b)


def layer_apart(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Pair:
    total = r + x
    return F.layer_norm(total, (WIDTH,), w, b), total


def rms(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Pair:
    return F.fused_add_rms_norm(x, r, (WIDTH,), w)


def rms_apart(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Pair:
    total = r + x
    return F.rms_norm(total, (WIDTH,), w), total


KINDS = pytest.mark.parametrize(
    ("fused", "apart"), [(layer, layer_apart), (rms, rms_apart)], ids=["layer", "rms"]
)


def inputs(x_dtype: paceline.dtype = F32, dtype: paceline.dtype = F32) -> list[Tensor]:
    paceline.manual_seed(5)
    shapes = [(3, 4, WIDTH), (3, 4, WIDTH), (WIDTH,), (WIDTH,)]
    dtypes = [x_dtype, dtype, dtype, dtype]
    pairs = zip(shapes, dtypes, strict=True)
    return [paceline.randn(*s).to(d).detach().requires_grad_() for s, d in pairs]


def bits(t: Tensor | None) -> list[float] | None:
    return None if t is None else t.detach().to(F64).flatten().tolist()


def outcome(norm: Norm, args: list[Tensor], low: bool = False) -> list[object]:
    """Dtypes and bits of both results and of all gradients."""
    with paceline.autocast("cpu", BF16, enabled=low):
        normed, total = norm(*args)
    (normed.to(F64).square().sum() + total.to(F64).sin().sum()).backward()
    every = [normed, total, *(a.grad for a in args)]
    return [(None if t is None else t.dtype, bits(t)) for t in every]


@KINDS
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [(F32, F32), (F64, F64), (BF16, F32), (F32, BF16), (paceline.float16, F32), (F64, F32)],
    ids=str,
)
def test_the_bits_are_those_of_two_calls(
    fused: Norm, apart: Norm, x_dtype: paceline.dtype, dtype: paceline.dtype, low: bool
) -> None:
    assert outcome(fused, inputs(x_dtype, dtype), low) == outcome(
        apart, inputs(x_dtype, dtype), low
    )


@KINDS
@pytest.mark.parametrize("low", [False, True])
def test_all_in_bfloat16(fused: Norm, apart: Norm, low: bool) -> None:
    """Both add the residual's gradient in the norm's pass: the sum is rounded once."""
    assert outcome(fused, inputs(BF16, BF16), low) == outcome(apart, inputs(BF16, BF16), low)


@KINDS
def test_the_stream_stays_wide_under_autocast(fused: Norm, apart: Norm) -> None:
    x, r, w, b = inputs()
    with paceline.autocast("cpu", BF16):
        product = F.linear(x, paceline.eye(WIDTH))
        assert product.dtype == BF16
        normed, total = fused(product, r, w, b)
    assert (normed.dtype, total.dtype) == (F32, F32)
    assert paceline.equal(total, r + product.float())
    (normed.sum() + total.sum()).backward()
    assert x.grad is not None


@KINDS
@pytest.mark.parametrize("used", ["norm", "sum"])
def test_one_result_alone(fused: Norm, apart: Norm, used: str) -> None:
    def one(norm: Norm) -> list[object]:
        args = inputs()
        norm(*args)[used == "sum"].square().sum().backward()
        return [bits(a.grad) for a in args]

    got = one(fused)
    assert got == one(apart)
    assert (got[2] is None) == (used == "sum")


@KINDS
def test_a_chain_of_them_is_differentiated_like_the_plain_one(fused: Norm, apart: Norm) -> None:
    """Several blocks on one stream, a graph kept for a second pass, and grad() of the stream."""

    def chain(norm: Norm) -> list[object]:
        x, r, w, b = inputs()
        stream, middle = r, r
        h = x
        for k in range(3):
            h, stream = norm(h.tanh(), stream, w, b)
            middle = stream if k == 1 else middle
        loss = (h * stream).sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        (inside,) = paceline.autograd.grad(loss, [middle])
        return [bits(t) for t in (x.grad, r.grad, w.grad, b.grad, inside)]

    got, want = chain(fused), chain(apart)
    assert got == want
    assert got[0] is not None
    assert got[4] is not None


def test_without_gradients() -> None:
    x, r, w, b = inputs()
    with paceline.no_grad():
        normed, total = F.fused_add_layer_norm(x, r, (WIDTH,), w, b)
    assert not normed.requires_grad
    assert not total.requires_grad
    normed, total = F.fused_add_rms_norm(x.detach(), r.detach(), (WIDTH,), w)
    assert normed.requires_grad
    assert not total.requires_grad


def test_views_and_empty_rows() -> None:
    x, r, w, b = (t.detach() for t in inputs())
    wide = paceline.cat([x, r], 2)
    got = F.fused_add_rms_norm(wide[..., :WIDTH], r.transpose(0, 1).contiguous().transpose(0, 1),
                               (WIDTH,), w)  # fmt: skip
    assert [bits(t) for t in got] == [bits(t) for t in rms_apart(x, r, w, b)]
    for shape, n in (((0, 3), (3,)), ((2, 0), (0,))):
        none = paceline.zeros(shape).requires_grad_()
        normed, total = F.fused_add_layer_norm(none, none, n, paceline.ones(n))
        (normed + total + F.rms_norm(none, n)).sum().backward()
        assert normed.shape == total.shape == none.shape
        assert none.grad is not None
        assert none.grad.shape == none.shape


def test_a_gradient_that_lies_where_it_is_added_to() -> None:
    """Handing a leaf's own .grad to backward: it is read and added to."""
    x, _, w, b = inputs()
    seed = paceline.randn(*x.shape)
    want = inputs()[0]
    F.layer_norm(want, (WIDTH,), w.detach(), b.detach()).backward(seed)
    assert want.grad is not None
    x.grad = seed.clone()
    F.layer_norm(x, (WIDTH,), w, b).backward(x.grad)
    np.testing.assert_array_equal(x.grad.numpy(), (seed + want.grad).numpy())


def test_weights_of_another_dtype() -> None:
    """Of x's or float32 as they are, others are cast; their gradient is of their own."""
    x, _, w, _ = inputs()
    for dtype in (F64, BF16):
        other = w.detach().to(dtype).requires_grad_()
        F.rms_norm(x, (WIDTH,), other).square().sum().backward()
        plain = other.detach().float().requires_grad_()
        F.rms_norm(x, (WIDTH,), plain).square().sum().backward()
        assert other.grad is not None
        assert plain.grad is not None
        assert other.grad.dtype == dtype
        assert paceline.equal(other.grad, plain.grad.to(dtype))


@pytest.mark.parametrize("dtype", [BF16, paceline.float16, F32, F64], ids=str)
def test_the_default_epsilon_is_that_of_the_sums_dtype(dtype: paceline.dtype) -> None:
    x = paceline.full((2, 4), 1e-4).to(dtype)
    eps = 2.0**-52 if dtype == F64 else 2.0**-23
    value = x[0, 0].double().item()
    want = value / (value**2 + eps) ** 0.5
    # One rounding to the dtype, a few in the one it is computed in.
    unit = {BF16: 2.0**-8, paceline.float16: 2.0**-11, F32: 2.0**-21, F64: 2.0**-50}[dtype]
    assert abs(F.rms_norm(x, (4,))[0, 0].double().item() / want - 1) < unit
    normed, _ = F.fused_add_rms_norm(x, paceline.zeros_like(x), (4,))
    assert paceline.equal(normed, F.rms_norm(x, (4,)))


@pytest.mark.parametrize("name", ["fused_add_layer_norm", "fused_add_rms_norm"])
def test_refusals(name: str) -> None:
    call = getattr(F, name)
    x, i = paceline.ones(2, 3), paceline.zeros(2, 3, dtype=paceline.int64)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: call(x, x[:1], (3,)), "expected one shape"),
        (lambda: call(x, x, (2,)), "expected it to end in"),
        (lambda: call(x, x, (3,), paceline.ones(2)), "weight must have the normalised shape"),
        (lambda: call(i, i, (3,)), "expected a floating tensor"),
    ]
    for wrong, message in cases:
        with pytest.raises(RuntimeError, match=r"^\[.*" + message):
            wrong()
