# SPDX-License-Identifier: Apache-2.0
"""One row of ``benchmarks/train.py`` by JAX: the same model, weights, batch and AdamW, jitted.

bf16 is mixed precision as in the other libraries: weights and moments in fp32, matrix products and
attention in bf16, norms, softmax and loss in fp32. Threads are as many as cores are allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import answer, sizes

LR, BETA1, BETA2, EPS, DECAY = 3e-4, 0.9, 0.999, 1e-8, 0.01
Params = dict[str, Any]


def linear(p: Params, name: str, x: Any, dtype: Any) -> Any:
    """Give x W^T + b, computed in `dtype`."""
    y = x.astype(dtype) @ p[f"{name}.weight"].astype(dtype).T
    bias = p.get(f"{name}.bias")
    return y if bias is None else y + bias.astype(dtype)


def norm(p: Params, name: str, x: Any) -> Any:
    """Layer norm in fp32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def gpt(p: Params, ids: Any, size: sizes.Gpt, dtype: Any) -> Any:
    """Logits (batch * tokens, vocab)."""
    b, t = ids.shape
    x = p["token.weight"][ids] + p["position.weight"][:t]
    for k in range(size.layers):
        at = f"blocks.{k}."
        qkv = linear(p, at + "qkv", norm(p, at + "norm1", x), dtype)
        q, key, value = jnp.moveaxis(qkv.reshape(b, t, 3, size.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, key, value, is_causal=True)
        x = x + linear(p, at + "out", mixed.reshape(b, t, size.width), dtype)
        hidden = linear(p, at + "mlp.0", norm(p, at + "norm2", x), dtype)
        x = x + linear(p, at + "mlp.2", jax.nn.gelu(hidden, approximate=False), dtype)
    return linear(p, "head", norm(p, "norm", x), dtype).reshape(b * t, -1)


def mlp(p: Params, x: Any, dtype: Any) -> Any:
    """Logits of the MLP."""
    x = jax.nn.relu(linear(p, "0", x, dtype))
    return linear(p, "4", jax.nn.relu(linear(p, "2", x, dtype)), dtype)


def make_step(name: str, dtype: Any) -> Callable[[], float]:
    """Give a step that trains in place and returns its loss."""
    params = {key: jnp.asarray(value) for key, value in sizes.weights(name).items()}
    x, y = (jnp.asarray(array) for array in sizes.batch(name))

    def loss_of(p: Params) -> Any:
        logits = mlp(p, x, dtype) if name == "mlp" else gpt(p, x, sizes.GPT[name], dtype)
        logits = logits.astype(jnp.float32)
        picked = jnp.take_along_axis(logits, y[:, None], -1)[:, 0]
        return (jax.nn.logsumexp(logits, -1) - picked).mean()

    def update(p: Any, m: Any, v: Any, g: Any, t: Any) -> tuple[Any, Any, Any]:
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        unbiased = m / (1 - BETA1**t)
        p = p * (1 - LR * DECAY) - LR * unbiased / (jnp.sqrt(v / (1 - BETA2**t)) + EPS)
        return p, m, v

    def train(p: Params, m: Params, v: Params, t: Any) -> tuple[Any, Params, Params, Params]:
        loss, g = jax.value_and_grad(loss_of)(p)
        new = {key: update(p[key], m[key], v[key], g[key], t) for key in p}
        return (loss, *({key: value[k] for key, value in new.items()} for k in range(3)))

    jitted = jax.jit(train, donate_argnums=(0, 1, 2))
    zeros = {key: jnp.zeros_like(value) for key, value in params.items()}
    state = [params, zeros, {key: jnp.zeros_like(value) for key, value in params.items()}]
    count = 0

    def step() -> float:
        nonlocal state, count
        count += 1
        loss, *state = jitted(*state, jnp.float32(count))
        jax.block_until_ready(state)
        return float(loss)

    return step


def main() -> None:
    _, model, precision, _ = sys.argv[1:5]
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    answer.serve_steps(make_step(model, dtype), compiled=True, memory=answer.peak_mib)


if __name__ == "__main__":
    main()
