# SPDX-License-Identifier: Apache-2.0
"""Sizes of the timed models, their batches and first weights: the same numbers in every library.

NumPy only, and only for weights and batches: workers of JAX and MLX read this in interpreters that
have neither paceline nor PyTorch.
Names and shapes of weights are those of benchmarks/models.py's ``state_dict``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Gpt:
    """A GPT-2 style decoder and its batch."""

    layers: int
    heads: int
    width: int
    context: int
    vocab: int
    batch: int


GPT = {
    "gpt": Gpt(6, 6, 384, 256, 256, 8),
    "gpt-b1": Gpt(6, 6, 384, 256, 256, 1),
    "tiny": Gpt(1, 2, 16, 8, 32, 2),
}
MLP = (784, 512, 512, 10)
MLP_BATCH = 64


def gpt_shapes(size: Gpt) -> dict[str, tuple[int, ...]]:
    """Shapes by name, linear weights as (out, in)."""
    c = size.width
    shapes: dict[str, tuple[int, ...]] = {
        "token.weight": (size.vocab, c),
        "position.weight": (size.context, c),
    }
    linears = {"qkv": (3 * c, c), "out": (c, c), "mlp.0": (4 * c, c), "mlp.2": (c, 4 * c)}
    for k in range(size.layers):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{k}.{norm}.{part}": (c,) for part in ("weight", "bias")}
        for name, shape in linears.items():
            shapes[f"blocks.{k}.{name}.weight"] = shape
            shapes[f"blocks.{k}.{name}.bias"] = shape[:1]
    return shapes | {"norm.weight": (c,), "norm.bias": (c,), "head.weight": (size.vocab, c)}


def mlp_shapes() -> dict[str, tuple[int, ...]]:
    """The same for the MLP; ReLU stands between the layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (wide, out) in enumerate(zip(MLP, MLP[1:], strict=False)):
        shapes |= {f"{2 * k}.weight": (out, wide), f"{2 * k}.bias": (out,)}
    return shapes


def weights(name: str) -> dict[str, Array]:
    """First weights: as GPT-2 initialises them, so that the first loss is near ln(classes)."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = mlp_shapes() if name == "mlp" else gpt_shapes(GPT[name])
    made = {}
    for key, shape in shapes.items():
        if len(shape) == 2:
            made[key] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
        else:
            one = key.endswith("weight")
            made[key] = np.full(shape, 1.0 if one else 0.0, np.float32)
    return made


def batch(name: str) -> tuple[Array, Array]:
    """Inputs, and one target class for each row or token."""
    import numpy as np

    rng = np.random.default_rng(1)
    if name == "mlp":
        x = rng.standard_normal((MLP_BATCH, MLP[0])).astype(np.float32)
        return x, rng.integers(0, MLP[-1], MLP_BATCH)
    size = GPT[name]
    shape = (size.batch, size.context)
    return rng.integers(0, size.vocab, shape), rng.integers(0, size.vocab, shape).reshape(-1)
