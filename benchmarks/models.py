# SPDX-License-Identifier: Apache-2.0
"""The models that are timed, written once for both libraries: the API is the same."""

from __future__ import annotations

from typing import Any

from benchmarks import sizes


def make_gpt(torch: Any, layers: int, heads: int, width: int, context: int, vocab: int) -> Any:
    """A GPT-2 style decoder: pre-norm, GELU, learned positions."""
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.norm2 = nn.LayerNorm(width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            qkv = self.qkv(self.norm1(x)).view(b, t, 3, heads, width // heads)
            q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, t, width))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(vocab, width)
            self.position = nn.Embedding(context, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocab, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


def make_mlp(torch: Any) -> Any:
    """784-512-512-10."""
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def make(torch: Any, name: str) -> tuple[Any, Any, Any]:
    """Model, inputs and targets: ``gpt`` (10.8 M, batch 8), ``gpt-b1``, ``mlp`` (batch 64).

    ``gpt2`` is the 124 M one, batch 2 of 256 tokens; ``tiny`` shows that a part runs.
    """
    torch.manual_seed(0)
    if name == "mlp":
        return make_mlp(torch), torch.randn(64, 784), torch.randint(0, 10, (64,))
    if name == "gpt2":
        ids, targets = torch.randint(0, 50257, (2, 256)), torch.randint(0, 50257, (512,))
        model = make_gpt(torch, 12, 12, 768, 256, 50257)
        model.head.weight = model.token.weight
        return model, ids, targets
    if name == "tiny":
        model = make_gpt(torch, 1, 2, 16, 8, 32)
        return model, torch.randint(0, 32, (2, 8)), torch.randint(0, 32, (16,))
    batch = {"gpt": 8, "gpt-b1": 1}[name]
    model = make_gpt(torch, 6, 6, 384, 256, 256)
    ids = torch.randint(0, 256, (batch, 256))
    return model, ids, torch.randint(0, 256, (batch * 256,))


def alike(torch: Any, name: str) -> tuple[Any, Any, Any]:
    """The same with the weights and batch that every library's worker has (benchmarks/sizes.py)."""
    model, x, y = make(torch, name)
    if name == "mlp" or name in sizes.GPT:
        state = {key: torch.from_numpy(value) for key, value in sizes.weights(name).items()}
        model.load_state_dict(state)
        x, y = (torch.from_numpy(array) for array in sizes.batch(name))
    return model, x, y
