# SPDX-License-Identifier: Apache-2.0
"""The one table of differentiable operators: value, gradient and speed are all driven from it.

A case gives an operator's inputs as float64 or int64 arrays, how to call it, and what NumPy says
the result is. An operator of the core that stands here in no case fails a test
(`test_table.py`), so none can exist without a value and a gradient test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline import _C

Array = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One operator called in one way.

    ``big`` gives inputs for the benchmark; ``spread`` says by how many roundings a result in a
    low dtype may be off (the length of the longest chain of roundings, not of the sum: sums are
    accumulated in fp32).
    """

    op: str
    label: str
    call: Callable[..., Any]
    small: Callable[[Rng], list[Array]]
    numpy: Callable[..., Array]
    big: Callable[[Rng], list[Array]] | None = None
    spread: float = 4.0
    low: bool = True  # has bf16 and fp16 values worth comparing
    cast: tuple[int, ...] = field(default=())  # inputs that keep their dtype


def normal(*shape: int) -> Callable[[Rng], Array]:
    return lambda rng: rng.standard_normal(shape)


def positive(*shape: int) -> Callable[[Rng], Array]:
    return lambda rng: rng.uniform(0.3, 2.0, shape)


def away_from_zero(*shape: int) -> Callable[[Rng], Array]:
    def make(rng: Rng) -> Array:
        return rng.uniform(0.3, 2.0, shape) * rng.choice([-1.0, 1.0], shape)

    return make


def distinct(*shape: int) -> Callable[[Rng], Array]:
    """No two elements near each other, so that a small step never changes which is largest."""
    n = math.prod(shape)
    return lambda rng: (rng.permutation(n).reshape(shape) + 0.5) / n * 4.0 - 2.0


def integers(high: int, *shape: int) -> Callable[[Rng], Array]:
    return lambda rng: rng.integers(0, high, shape)


def several(*makers: Callable[[Rng], Array]) -> Callable[[Rng], list[Array]]:
    return lambda rng: [make(rng) for make in makers]


# ---- what NumPy says ---------------------------------------------------------------------------


def np_erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def np_gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np_erf(x / math.sqrt(2.0)))


def np_gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def np_sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def np_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def np_layer_norm(x: Array, w: Array, b: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


def np_rms_norm(x: Array, w: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w


def added(pair: tuple[Any, Any]) -> Any:
    """Both results of a norm with the sum before it, so that both have a gradient."""
    return pair[0] + pair[1]


def np_each_entropy(x: Array, t: Array, smoothing: float = 0.0) -> Array:
    logp = np.log(np_softmax(x))
    nll = -logp[np.arange(len(t)), t]
    return (1 - smoothing) * nll - smoothing * logp.mean(-1)


def np_cross_entropy(x: Array, t: Array, smoothing: float = 0.0) -> Array:
    return np.mean(np_each_entropy(x, t, smoothing))


def np_weighted_entropy(x: Array, t: Array, w: Array) -> Array:
    keep = t != 0
    logp = np.log(np_softmax(x))[np.arange(len(t)), t]
    return -(logp * w[t] * keep).sum() / (w[t] * keep).sum()


def np_linear_entropy(
    x: Array, w: Array, t: Array, b: Array | float = 0.0, cw: Array | None = None
) -> Array:
    logp = np.log(np_softmax(x @ w.T + b))
    share = (np.ones(len(w)) if cw is None else cw)[t]
    return -(logp[np.arange(len(t)), t] * share).sum() / share.sum()


def np_attention(q: Array, k: Array, v: Array, causal: bool) -> Array:
    s = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], dtype=bool)), s, -np.inf)
    return np_softmax(s) @ v


def np_dropout(x: Array) -> Array:
    """The stream's own mask, read off a tensor of ones."""
    from paceline import dtypes

    ones = _C.full(list(x.shape), 1.0, dtypes.float64.code)
    return x * np.asarray(_dropout(ones))


def _dropout(x: Any) -> Any:
    gen = _C.Generator()
    gen.seed = 7
    return _C.dropout(x, 0.4, gen)


# ---- the cases ---------------------------------------------------------------------------------


def unary(op: str, ref: Callable[[Array], Array], make: Any = normal, **more: Any) -> Case:
    return Case(
        op, op, getattr(_C, op), several(make(3, 7)), ref, several(make(2048, 1536)), **more
    )


def binary(op: str, ref: Callable[..., Array], second: Any = normal, **more: Any) -> list[Case]:
    call = getattr(_C, op)
    first = positive if op == "pow" else normal
    return [
        Case(op, op, call, several(first(3, 5), second(3, 5)), ref,
             several(first(2048, 384), second(2048, 384)), **more),
        Case(op, f"{op} broadcast", call, several(first(4, 1, 3), second(2, 1)), ref, **more),
    ]  # fmt: skip


def reduction(op: str, ref: Callable[..., Array], make: Any = normal, **more: Any) -> list[Case]:
    call = getattr(_C, op)
    return [
        Case(op, f"{op} all", lambda x: call(x, None, False), several(make(4, 5)),
             lambda x: ref(x), several(make(2048, 1536)), **more),
        Case(op, f"{op} rows", lambda x: call(x, [1], True), several(make(3, 4, 5)),
             lambda x: ref(x, axis=1, keepdims=True), **more),
        Case(op, f"{op} two", lambda x: call(x, [0, 2], False), several(make(3, 4, 5)),
             lambda x: ref(x, axis=(0, 2)), **more),
    ]  # fmt: skip


def np_swiglu(x: Array) -> Array:
    gate, up = np.split(x, 2, -1)
    return gate * np_sigmoid(gate) * up


def np_rotary(x: Array, cos: Array, sin: Array, position: int = 0) -> Array:
    low, high = np.split(x, 2, -1)
    rows = slice(position, position + x.shape[-2])
    c, s = cos[rows], sin[rows]
    return np.concatenate([low * c - high * s, high * c + low * s], -1)


def angles(of: Callable[[Array], Array], positions: int, half: int) -> Callable[[Rng], Array]:
    """A table that float32 holds, so that every dtype sees the same."""
    table = of(np.arange(positions)[:, None] * 100.0 ** (-np.arange(half) / half))
    return lambda rng: table.astype(np.float32).astype(np.float64)


def rotary_case(label: str, position: int, **more: Any) -> Case:
    return Case("rotary_embedding", label,
                lambda x, c, s: _C.rotary_embedding(x, c, s, position),
                several(normal(2, 3, 4, 6), angles(np.cos, 7, 3), angles(np.sin, 7, 3)),
                lambda x, c, s: np_rotary(x, c, s, position), cast=(1, 2), **more)  # fmt: skip


def attention_case(causal: bool) -> Case:
    shape, big = (2, 2, 5, 4), (8, 6, 256, 64)
    return Case(
        "attention",
        "attention causal" if causal else "attention",
        lambda q, k, v: _C.attention(q, k, v, None, 0.0, causal, math.nan, False),
        several(normal(*shape), normal(*shape), normal(*shape)),
        lambda q, k, v: np_attention(q, k, v, causal),
        several(normal(*big), normal(*big), normal(*big)),
        spread=8,
    )


def np_grouped_attention(q: Array, k: Array, v: Array) -> Array:
    group = q.shape[1] // k.shape[1]
    return np_attention(q, np.repeat(k, group, 1), np.repeat(v, group, 1), True)


def linear_case(act: int, name: str, ref: Callable[[Array], Array]) -> Case:
    return Case(
        "linear",
        f"linear {name}".strip(),
        lambda x, w, b: _C.linear(x, w, b, act),
        several(normal(2, 3, 4), normal(5, 4), normal(5)),
        lambda x, w, b: ref(x @ w.T + b),
        several(normal(2048, 384), normal(1536, 384), normal(1536)),
        spread=8,
    )


CASES: list[Case] = [
    unary("neg", np.negative), unary("abs", np.abs, away_from_zero), unary("exp", np.exp),
    unary("log", np.log, positive), unary("sqrt", np.sqrt, positive),
    unary("rsqrt", lambda x: 1 / np.sqrt(x), positive),
    unary("reciprocal", lambda x: 1 / x, away_from_zero), unary("square", np.square),
    unary("sin", np.sin), unary("cos", np.cos), unary("tanh", np.tanh),
    unary("sigmoid", np_sigmoid), unary("relu", lambda x: np.maximum(x, 0), away_from_zero),
    unary("gelu", np_gelu), unary("gelu_tanh", np_gelu_tanh),
    unary("silu", lambda x: x * np_sigmoid(x)), unary("erf", np_erf),
    *binary("add", np.add), *binary("sub", np.subtract), *binary("mul", np.multiply),
    *binary("div", np.divide, away_from_zero), *binary("pow", np.power, spread=12),
    *binary("maximum", np.maximum), *binary("minimum", np.minimum),
    Case("where", "where", lambda a, b: _C.where(_C.gt(_C.detach(a), 0.0), a, b),
         several(away_from_zero(3, 4), normal(4)), lambda a, b: np.where(a > 0, a, b),
         several(away_from_zero(2048, 384), normal(2048, 384))),
    Case("clamp", "clamp", lambda x: _C.clamp(x, -0.5, 0.8), several(normal(4, 5)),
         lambda x: np.clip(x, -0.5, 0.8), several(normal(2048, 384))),
    Case("to_dtype", "to_dtype", lambda x: _C.to_dtype(x, 7), several(normal(3, 4)), lambda x: x,
         several(normal(2048, 384))),
    Case("clone", "clone", _C.clone, several(normal(3, 4)), lambda x: x,
         several(normal(2048, 384))),
    Case("view", "view", lambda x: _C.view(x, [4, 3]), several(normal(3, 4)),
         lambda x: x.reshape(4, 3), several(normal(3, 4))),
    Case("view", "reshape with a copy", lambda x: _C.reshape(_C.transpose(x, 0, 1), [2, 6]),
         several(normal(3, 4)), lambda x: x.T.reshape(2, 6)),
    Case("permute", "permute", lambda x: _C.permute(x, [2, 0, 1]), several(normal(2, 3, 4)),
         lambda x: x.transpose(2, 0, 1), several(normal(2, 3, 4))),
    Case("expand", "expand", lambda x: _C.expand(x, [2, 3, 4]), several(normal(3, 1)),
         lambda x: np.broadcast_to(x, (2, 3, 4)), several(normal(3, 1))),
    Case("slice", "slice", lambda x: _C.slice(x, 1, 1, 6, 2), several(normal(3, 7)),
         lambda x: x[:, 1:6:2], several(normal(3, 7))),
    Case("slice", "three slices of one",
         lambda x: _C.cat([_C.slice(x, 1, 4, 6, 1), _C.slice(x, 1, 0, 3, 1)], 1)
         * _C.sum(_C.slice(x, 1, 3, 4, 1), None, False),
         several(normal(3, 6)),
         lambda x: np.concatenate([x[:, 4:6], x[:, 0:3]], 1) * x[:, 3:4].sum()),
    Case("cat", "cat", lambda a, b: _C.cat([a, b, a], 1), several(normal(2, 3), normal(2, 4)),
         lambda a, b: np.concatenate([a, b, a], 1),
         several(normal(2048, 384), normal(2048, 384))),
    *reduction("sum", np.sum), *reduction("mean", np.mean),
    *reduction("prod", np.prod, away_from_zero, spread=16),
    *reduction("amax", np.max, distinct), *reduction("amin", np.min, distinct),
    Case("cumsum", "cumsum", lambda x: _C.cumsum(x, 1), several(normal(3, 6)),
         lambda x: np.cumsum(x, 1), several(normal(2048, 384)), spread=12),
    Case("matmul", "matmul", _C.matmul, several(normal(4, 5), normal(5, 3)), np.matmul,
         several(normal(1024, 1024), normal(1024, 1024)), spread=8),
    Case("matmul", "matmul batched", _C.matmul, several(normal(2, 1, 4, 5), normal(3, 5, 3)),
         np.matmul, spread=8),
    Case("matmul", "matmul folded", _C.matmul, several(normal(2, 4, 5), normal(5, 3)), np.matmul,
         spread=8),
    Case("matmul", "matmul vectors", _C.matmul, several(normal(5), normal(5)), np.matmul,
         spread=8),
    Case("matmul", "matmul transposed", lambda a, b: _C.matmul(a, _C.transpose(b, 0, 1)),
         several(normal(4, 5), normal(3, 5)), lambda a, b: a @ b.T, spread=8),
    linear_case(0, "", lambda x: x), linear_case(1, "relu", lambda x: np.maximum(x, 0)),
    linear_case(2, "gelu", np_gelu), linear_case(3, "gelu_tanh", np_gelu_tanh),
    Case("layer_norm", "layer_norm", lambda x, w, b: _C.layer_norm(x, w, b, 1, 1e-5),
         several(normal(3, 2, 6), normal(6), normal(6)), np_layer_norm,
         several(normal(2048, 384), normal(384), normal(384)), spread=16),
    Case("layer_norm", "layer_norm of a sum",
         lambda x, r, w, b: added(_C.add_layer_norm(x, r, w, b, 1, 1e-5)),
         several(normal(3, 2, 6), normal(3, 2, 6), normal(6), normal(6)),
         lambda x, r, w, b: np_layer_norm(x + r, w, b) + x + r,
         several(normal(2048, 384), normal(2048, 384), normal(384), normal(384)), spread=16),
    Case("rms_norm", "rms_norm", lambda x, w: _C.rms_norm(x, w, 1, 1e-5),
         several(normal(3, 2, 6), normal(6)), np_rms_norm,
         several(normal(2048, 384), normal(384)), spread=16),
    Case("rms_norm", "rms_norm over two dimensions", lambda x, w: _C.rms_norm(x, w, 2, 1e-5),
         several(normal(3, 2, 6), normal(2, 6)),
         lambda x, w: np_rms_norm(x.reshape(3, 12), w.reshape(12)).reshape(3, 2, 6), spread=16),
    Case("rms_norm", "rms_norm of a sum",
         lambda x, r, w: added(_C.add_rms_norm(x, r, w, 1, 1e-5)),
         several(normal(3, 2, 6), normal(3, 2, 6), normal(6)),
         lambda x, r, w: np_rms_norm(x + r, w) + x + r,
         several(normal(2048, 384), normal(2048, 384), normal(384)), spread=16),
    Case("softmax", "softmax", lambda x: _C.softmax(x, -1), several(normal(3, 6)), np_softmax,
         several(normal(2048, 384)), spread=8),
    Case("softmax", "softmax of a middle dimension", lambda x: _C.softmax(x, 1),
         several(normal(2, 5, 3)),
         lambda x: np.swapaxes(np_softmax(np.swapaxes(x, 1, 2)), 1, 2), spread=8),
    Case("log_softmax", "log_softmax", lambda x: _C.log_softmax(x, -1), several(normal(3, 6)),
         lambda x: np.log(np_softmax(x)), several(normal(2048, 384)), spread=8),
    Case("linear_cross_entropy", "linear_cross_entropy",
         lambda x, w, t: _C.linear_cross_entropy(x, w, t, None, None, -100, 0.0, 1, 0),
         several(normal(5, 4), normal(7, 4), integers(7, 5)), np_linear_entropy,
         several(normal(512, 768), normal(4096, 768), integers(4096, 512)), spread=16),
    Case("linear_cross_entropy", "linear_cross_entropy in chunks",
         lambda x, w, t, b, cw: _C.linear_cross_entropy(x, w, t, b, cw, -100, 0.0, 1, 2),
         several(normal(5, 4), normal(7, 4), integers(7, 5), normal(7), positive(7)),
         np_linear_entropy, spread=16, cast=(4,)),
    Case("linear_cross_entropy", "linear_cross_entropy of each row",
         lambda x, w, t, b: _C.linear_cross_entropy(x, w, t, b, None, -100, 0.1, 0, 2),
         several(normal(5, 4), normal(7, 4), integers(7, 5), normal(7)),
         lambda x, w, t, b: np_each_entropy(x @ w.T + b, t, 0.1), spread=16),
    Case("cross_entropy", "cross_entropy",
         lambda x, t: _C.cross_entropy(x, t, None, -100, 0.0, 1),
         several(normal(5, 7), integers(7, 5)), np_cross_entropy,
         several(normal(2048, 256), integers(256, 2048)), spread=8, cast=(1,)),
    Case("cross_entropy", "cross_entropy smoothed",
         lambda x, t: _C.cross_entropy(x, t, None, -100, 0.2, 1),
         several(normal(5, 7), integers(7, 5)),
         lambda x, t: np_cross_entropy(x, t, 0.2), spread=8, cast=(1,)),
    Case("cross_entropy", "cross_entropy weighted, one class ignored",
         lambda x, t, w: _C.cross_entropy(x, t, _C.detach(w), 0, 0.0, 1),
         several(normal(8, 4), lambda rng: np.array([0, 1, 2, 3, 0, 1, 2, 3]), positive(4)),
         np_weighted_entropy, spread=8, cast=(1, 2)),
    Case("embedding", "embedding", lambda w, i: _C.embedding(w, i, -1),
         several(normal(6, 3), lambda rng: np.array([[0, 2, 2], [5, 0, 2]])),
         lambda w, i: w[i], several(normal(256, 384), integers(256, 2048)), cast=(1,)),
    Case("gather", "gather", lambda x, i: _C.gather(x, 1, i),
         several(normal(3, 5), lambda rng: rng.integers(0, 5, (3, 4))),
         lambda x, i: np.take_along_axis(x, i, 1),
         several(normal(2048, 256), integers(256, 2048, 1)), cast=(1,)),
    Case("dropout", "dropout", _dropout, several(normal(5, 7)), np_dropout,
         several(normal(2048, 384))),
    Case("swiglu", "swiglu", _C.swiglu, several(normal(3, 2, 10)), np_swiglu,
         several(normal(2048, 3072))),
    rotary_case("rotary_embedding", 0, big=several(
        normal(8, 6, 256, 64), angles(np.cos, 256, 32), angles(np.sin, 256, 32))),
    rotary_case("rotary_embedding from a later position", 3),
    Case("rotary_embedding", "rotary_embedding of a view and two dimensions",
         lambda x, c, s: _C.rotary_embedding(_C.transpose(x, 0, 1), c, s, 2),
         several(normal(4, 5), angles(np.cos, 7, 2), angles(np.sin, 7, 2)),
         lambda x, c, s: np_rotary(x.T, c, s, 2), cast=(1, 2)),
    attention_case(False), attention_case(True),
    Case("attention", "attention of grouped queries",
         lambda q, k, v: _C.attention(q, k, v, None, 0.0, True, math.nan, True),
         several(normal(2, 6, 4, 4), normal(2, 2, 4, 4), normal(2, 2, 4, 4)),
         np_grouped_attention, spread=8),
]  # fmt: skip


# Cases whose gradient is not that of the small inputs' formula: nothing to differentiate.
NOT_DIFFERENTIABLE: dict[str, tuple[int, ...]] = {
    "cross_entropy weighted, one class ignored": (2,),
    "linear_cross_entropy in chunks": (4,),
    "rotary_embedding": (1, 2),
    "rotary_embedding from a later position": (1, 2),
    "rotary_embedding of a view and two dimensions": (1, 2),
}


def cases_of(op: str) -> list[Case]:
    return [case for case in CASES if case.op == op]
