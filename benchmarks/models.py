# SPDX-License-Identifier: Apache-2.0
"""The models that are timed, written once for both libraries: the API is the same."""

from __future__ import annotations

from typing import Any

from benchmarks import sizes


def make_gpt(torch: Any, layers: int, heads: int, width: int, context: int, vocab: int) -> Any:
    """A GPT-2 style decoder: pre-norm, GELU, learned positions."""
    nn, functional = torch.nn, torch.nn.functional
    together = getattr(functional, "fused_add_layer_norm", None)

    def add_norm(norm: Any, x: Any, stream: Any) -> tuple[Any, Any]:
        """The norm of ``stream + x``, and that sum: by one function where the library has it."""
        if together is not None:
            shape, eps = norm.normalized_shape, norm.eps
            return together(x, stream, shape, norm.weight, norm.bias, eps)  # type: ignore[no-any-return]
        stream = stream + x
        return norm(stream), stream

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

        def forward(self, x: Any, stream: Any) -> tuple[Any, Any]:
            """From norm1 of the stream to the stream and what is still to be added to it."""
            b, t, _ = x.shape
            qkv = self.qkv(x).view(b, t, 3, heads, width // heads)
            q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed = self.out(mixed.transpose(1, 2).reshape(b, t, width))
            x, stream = add_norm(self.norm2, mixed, stream)
            return self.mlp(x), stream

    class GPT(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(vocab, width)
            self.position = nn.Embedding(context, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocab, bias=False)

        def forward(self, ids: Any) -> Any:
            places = torch.arange(ids.shape[1], device=ids.device)
            stream = self.token(ids) + self.position(places)
            blocks = list(self.blocks)
            x = blocks[0].norm1(stream)
            for block, norm in zip(
                blocks, [*(b.norm1 for b in blocks[1:]), self.norm], strict=True
            ):
                x, stream = block(x, stream)
                x, stream = add_norm(norm, x, stream)
            return self.head(x)

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
