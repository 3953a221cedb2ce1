# SPDX-License-Identifier: Apache-2.0
"""SwiGLU, rotary embedding and grouped queries: what they are made of, and their errors.

`tests/scripts/test_llama.py` compares them with Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from numerics.compare import array
from paceline import nn

Tensor = paceline.Tensor


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- SwiGLU and GLU ----------------------------------------------------------------------------


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    x = paceline.tensor(random(2, 3, 10), requires_grad=True)
    y = paceline.tensor(random(2, 3, 10), requires_grad=True)
    gate, up = y.chunk(2, dim=-1)
    one, other = nn.SwiGLU()(x), F.silu(gate) * up
    np.testing.assert_allclose(array(one), array(other), rtol=1e-6, atol=1e-7)
    one.square().sum().backward()
    other.square().sum().backward()
    np.testing.assert_allclose(array(x.grad), array(y.grad), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_swiglu_may_take_the_inputs_memory() -> None:
    """Only where the graph alone holds it: what the caller still sees is left as it was."""
    x = paceline.tensor(random(4, 8), requires_grad=True)
    held = x * 1
    before = array(held).copy()
    out = F.swiglu(held)
    out.sum().backward(retain_graph=True)
    first = array(x.grad).copy()
    x.grad = None
    out.sum().backward()
    assert np.array_equal(array(held), before)
    assert np.array_equal(array(x.grad), first)
    x.grad = None
    F.swiglu(x * 1).sum().backward()
    assert np.array_equal(array(x.grad), first)


def test_a_view_is_packed_first() -> None:
    x = paceline.tensor(random(6, 5))
    assert array(F.swiglu(x.t())).tolist() == array(F.swiglu(x.t().contiguous())).tolist()


def test_under_autocast_they_keep_the_dtype() -> None:
    w = paceline.tensor(random(8, 4))
    with paceline.autocast("cpu", paceline.bfloat16):
        packed = F.linear(paceline.tensor(random(3, 4)), w)
        cos, sin = F.rotary_tables(5, 8)
        assert F.swiglu(packed).dtype == paceline.bfloat16
        assert F.swiglu(packed.float()).dtype == paceline.float32
        assert F.rotary_embedding(packed, cos, sin).dtype == paceline.bfloat16
    assert cos.dtype == sin.dtype == paceline.float32
    assert array(cos).tolist() == array(F.rotary_tables(5, 8)[0]).tolist()


def test_layers_and_their_text() -> None:
    rotary = nn.RotaryEmbedding(6, 20, base=500.0)
    assert repr(nn.GLU(1)) == "GLU(dim=1)"
    assert repr(nn.SwiGLU()) == "SwiGLU()"
    assert repr(rotary) == "RotaryEmbedding(6, max_position=20, base=500.0)"
    assert rotary.state_dict() == {}
    x = paceline.tensor(random(2, 3, 4, 6))
    cos, sin = F.rotary_tables(20, 6, 500.0)
    assert array(rotary(x, 7)).tolist() == array(F.rotary_embedding(x, cos, sin, 7)).tolist()
    assert array(nn.GLU(0)(x)).tolist() == array(F.glu(x, 0)).tolist()


# ---- rotary embedding --------------------------------------------------------------------------


def test_tables() -> None:
    cos, sin = F.rotary_tables(300, 8, 100.0)
    angles = np.arange(300)[:, None] * 100.0 ** (-np.arange(4) / 4)
    assert cos.dtype == paceline.float32
    # Rounded once from double: half a unit in the last place of float32.
    assert np.abs(array(cos) - np.cos(angles)).max() <= 2.0**-24
    assert np.abs(array(sin) - np.sin(angles)).max() <= 2.0**-24
    assert F.rotary_tables(3, 8, dtype=paceline.float64)[1].dtype == paceline.float64
    assert F.rotary_tables(0, 8)[0].shape == (0, 4)


def test_what_is_turned_lies_as_attention_wants_it() -> None:
    """A view of a packed projection is read as it is; heads can be merged again as a view."""
    qkv = paceline.tensor(random(2, 5, 3 * 4 * 6), requires_grad=True)
    q = qkv.view(2, 5, 3, 4, 6)[:, :, 0].transpose(1, 2)
    cos, sin = F.rotary_tables(5, 6)
    out = F.rotary_embedding(q, cos, sin)
    assert out.transpose(1, 2).is_contiguous()
    alone = q.detach().contiguous().requires_grad_()
    again = F.rotary_embedding(alone, cos, sin)
    assert array(out).tolist() == array(again).tolist()
    (out * again.detach()).sum().backward()
    (again * again.detach()).sum().backward()
    assert qkv.grad is not None
    part = qkv.grad.view(2, 5, 3, 4, 6)[:, :, 0].transpose(1, 2)
    assert array(part).tolist() == array(alone.grad).tolist()
    assert not array(qkv.grad.view(2, 5, 3, 24)[:, :, 1:]).any()


def test_positions_go_on_where_a_cache_ends() -> None:
    x = paceline.tensor(random(1, 2, 7, 8))
    rotary = nn.RotaryEmbedding(8, 7)
    whole = array(rotary(x))
    assert whole[:, :, 4:].tolist() == array(rotary(x[:, :, 4:], position=4)).tolist()


# ---- grouped queries ---------------------------------------------------------------------------


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries_are_repeated_keys(causal: bool, low: bool) -> None:
    """The same numbers as with each head of keys and values written out; gradients summed."""
    shapes = ((2, 6, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8))
    dtype = paceline.bfloat16 if low else paceline.float32
    grads = []
    for grouped in (True, False):
        q, k, v = (
            paceline.tensor(random(*s, seed=i), dtype=dtype, requires_grad=True)
            for i, s in enumerate(shapes)
        )
        wide = [k, v] if grouped else [repeated(k), repeated(v)]
        out = F.scaled_dot_product_attention(q, *wide, is_causal=causal, enable_gqa=grouped)
        out.float().square().sum().backward()
        grads.append([array(t) for t in (out, q.grad, k.grad, v.grad)])
    for i, (one, other) in enumerate(zip(*grads, strict=True)):
        # A sum over a group is rounded once or twice, of terms of a few units.
        bound = (2e-2 if low else 1e-5) if i > 1 else 0.0
        np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def repeated(t: Tensor) -> Tensor:
    b, heads, rows, width = t.shape
    return t.unsqueeze(2).expand(b, heads, 3, rows, width).reshape(b, heads * 3, rows, width)


def test_grouped_queries_with_dropout_repeat() -> None:
    q, k = paceline.tensor(random(1, 4, 5, 8)), paceline.tensor(random(1, 2, 5, 8))
    outs = []
    for wide in (k, k.unsqueeze(2).expand(1, 2, 2, 5, 8).reshape(1, 4, 5, 8)):
        paceline.manual_seed(5)
        out = F.scaled_dot_product_attention(q, wide, wide, dropout_p=0.5, enable_gqa=True)
        outs.append(array(out).tolist())
    assert outs[0] == outs[1]


# ---- errors ------------------------------------------------------------------------------------

X = paceline.ones(2, 4, 3, 6)
TABLE = paceline.ones(3, 3)
HALF = paceline.ones(2, 2, 3, 6)


ERRORS: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (RuntimeError, r"\[swiglu\] .*\[2, 3\], expected an even", lambda: F.swiglu(TABLE[:2])),
    (RuntimeError, r"\[swiglu\] .*shape \[\]", lambda: F.swiglu(TABLE.sum())),
    (RuntimeError, r"\[swiglu\] needs a floating dtype: got int64", lambda: F.swiglu(X.long())),
    (RuntimeError, r"\[glu\] size of dimension -2: got 3", lambda: F.glu(X, -2)),
    (RuntimeError, r"\[glu\] got a 0-d tensor", lambda: F.glu(X.sum())),
    (IndexError, r"\[glu\] dim: got 4, expected -4 to 3", lambda: F.glu(X, 4)),
    (RuntimeError, r"input: got shape \[3, 3\]", lambda: F.rotary_embedding(TABLE, TABLE, TABLE)),
    (RuntimeError, r"input: .*int64", lambda: F.rotary_embedding(X.long(), TABLE, TABLE)),
    (RuntimeError, r"input: got shape \[6\]", lambda: F.rotary_embedding(X[0, 0, 0], TABLE, TABLE)),
    (RuntimeError, r"cos: got shape \[3, 2\].*\(positions, 3\)",
     lambda: F.rotary_embedding(X, TABLE[:, :2], TABLE)),
    (RuntimeError, r"sin: .* of bool", lambda: F.rotary_embedding(X, TABLE, TABLE > 0)),
    (RuntimeError, r"\[3, 3\] and \[2, 3\], expected one shape",
     lambda: F.rotary_embedding(X, TABLE, TABLE[:2])),
    (IndexError, r"got 1 to 4, expected within the 3 rows",
     lambda: F.rotary_embedding(X, TABLE, TABLE, 1)),
    (IndexError, r"got -1 to 2", lambda: F.rotary_embedding(X, TABLE, TABLE, -1)),
    (ValueError, r"dim: got 5, expected an even", lambda: F.rotary_tables(3, 5)),
    (ValueError, r"length: got -1", lambda: F.rotary_tables(-1, 4)),
    (ValueError, r"base: got 0", lambda: F.rotary_tables(3, 4, 0)),
    (RuntimeError, r"need enable_gqa=True", lambda: F.scaled_dot_product_attention(X, HALF, HALF)),
    (RuntimeError, r"got 3 heads of key and value, expected a number that divides the 4",
     lambda: F.scaled_dot_product_attention(X, X[:, :3], X[:, :3], enable_gqa=True)),
    (RuntimeError, r"expected query", lambda: F.scaled_dot_product_attention(
        X, HALF, X, enable_gqa=True)),
    (RuntimeError, r"expected \(\.\.\., H, T, D\), \(\.\.\., Hkv, S, D\)",
     lambda: F.scaled_dot_product_attention(TABLE, TABLE, TABLE, enable_gqa=True)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "call"), ERRORS, ids=[text for _, text, _ in ERRORS])
def test_errors(kind: type[Exception], text: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_tables_get_no_gradient() -> None:
    table = paceline.ones(3, 3, requires_grad=True)
    out = F.rotary_embedding(X.clone().requires_grad_(), table, table)
    with pytest.raises(NotImplementedError, match=r"no gradient for cos and sin: pass cos.detach"):
        out.sum().backward()
