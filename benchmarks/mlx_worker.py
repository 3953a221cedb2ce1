# SPDX-License-Identifier: Apache-2.0
"""One row of ``benchmarks/train.py`` by MLX on the CPU: the same model, weights, batch and AdamW.

bf16 is mixed precision as in the other libraries: weights and moments in fp32, matrix products and
attention in bf16, norms and loss in fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from benchmarks import answer, sizes

Params = dict[str, Any]


def linear(p: Params, name: str, x: Any, dtype: Any) -> Any:
    """Give x W^T + b, computed in `dtype`."""
    y = x.astype(dtype) @ p[f"{name}.weight"].astype(dtype).T
    bias = p.get(f"{name}.bias")
    return y if bias is None else y + bias.astype(dtype)


def norm(p: Params, name: str, x: Any) -> Any:
    """Layer norm in fp32."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return mx.fast.layer_norm(x.astype(mx.float32), weight, bias, 1e-5)


def gpt(p: Params, ids: Any, size: sizes.Gpt, dtype: Any) -> Any:
    """Logits (batch * tokens, vocab)."""
    b, t = ids.shape
    x = p["token.weight"][ids] + p["position.weight"][:t]
    scale = (size.width // size.heads) ** -0.5
    for k in range(size.layers):
        at = f"blocks.{k}."
        qkv = linear(p, at + "qkv", norm(p, at + "norm1", x), dtype)
        q, key, value = qkv.reshape(b, t, 3, size.heads, -1).transpose(2, 0, 3, 1, 4)
        mixed = mx.fast.scaled_dot_product_attention(q, key, value, scale=scale, mask="causal")
        x = x + linear(p, at + "out", mixed.transpose(0, 2, 1, 3).reshape(b, t, -1), dtype)
        hidden = linear(p, at + "mlp.0", norm(p, at + "norm2", x), dtype)
        x = x + linear(p, at + "mlp.2", nn.gelu(hidden), dtype)
    return linear(p, "head", norm(p, "norm", x), dtype).reshape(b * t, -1)


def mlp(p: Params, x: Any, dtype: Any) -> Any:
    """Logits of the MLP."""
    x = nn.relu(linear(p, "0", x, dtype))
    return linear(p, "4", nn.relu(linear(p, "2", x, dtype)), dtype)


def make_step(name: str, dtype: Any) -> Callable[[], float]:
    """Give a step that trains in place and returns its loss."""
    mx.set_default_device(mx.cpu)
    params = {key: mx.array(value) for key, value in sizes.weights(name).items()}
    x, y = (mx.array(array) for array in sizes.batch(name))
    optimizer = optim.AdamW(3e-4, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01,
                            bias_correction=True)  # fmt: skip
    optimizer.init(params)

    def loss_of(p: Params) -> Any:
        logits = mlp(p, x, dtype) if name == "mlp" else gpt(p, x, sizes.GPT[name], dtype)
        return nn.losses.cross_entropy(logits.astype(mx.float32), y, reduction="mean")

    value_and_grad = mx.value_and_grad(loss_of)

    def step() -> float:
        nonlocal params
        loss, grads = value_and_grad(params)
        params = optimizer.apply_gradients(grads, params)
        mx.eval(loss, params, optimizer.state)
        return float(loss.item())

    return step


def main() -> None:
    _, model, precision, _ = sys.argv[1:5]
    dtype = mx.bfloat16 if precision == "bf16" else mx.float32
    answer.serve_steps(make_step(model, dtype), memory=answer.peak_mib)


if __name__ == "__main__":
    main()
