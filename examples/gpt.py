# SPDX-License-Identifier: Apache-2.0
"""A GPT over bytes: pre-norm blocks, GELU, learned positions, output tied to the embedding.

The default has 6 layers, 6 heads, width 384 and context 256: 10.7 million parameters, not counting
the 0.1 million of the position table. Every line also runs with ``import torch``.
"""

import math
from dataclasses import dataclass

import paceline as torch
import paceline.nn as nn
import paceline.nn.functional as F


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model."""

    layers: int = 6
    heads: int = 6
    width: int = 384
    context: int = 256
    vocab: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x):
        b, t, c = x.shape
        # (B, T, 3C) to three of (B, H, T, D), without a copy.
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(c, dim=2)
        )
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    """Attention and a two-layer network, each added to what it reads."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class LanguageModel(nn.Module):
    """What models over bytes share; one has a ``config.context`` and an embedding ``tokens``."""

    def parameter_groups(self, weight_decay):
        """Decay matrices and embeddings, but neither biases nor norms."""
        every = list(self.parameters())
        return [
            {"params": [p for p in every if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def generate(self, prompt, length, temperature=0.8):
        """Give ``prompt`` (bytes) and ``length`` bytes more, drawn one by one."""
        text = list(prompt)
        for _ in range(length):
            window = torch.tensor([text[-self.config.context :]], device=self.tokens.weight.device)
            logits = self(window)[0, -1].float() / temperature
            text.append(int(torch.multinomial(F.softmax(logits, dim=-1), 1).item()))
        return bytes(text)


class GPT(LanguageModel):
    """The language model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.initialise()

    def initialise(self):
        """GPT-2's: normal of 0.02, and less where a block adds to the residual stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                adds = name.endswith(("proj.weight", "mlp.2.weight"))
                std = 0.02 / math.sqrt(2 * self.config.layers) if adds else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def forward(self, bytes_in):
        """Give the logits (B, T, vocab) of the byte that follows each of ``bytes_in`` (B, T)."""
        t = bytes_in.shape[1]
        if t > self.config.context:
            raise ValueError(
                f"got {t} bytes, expected at most the context of {self.config.context}"
            )
        places = torch.arange(t, device=bytes_in.device)
        x = self.drop(self.tokens(bytes_in) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def language_loss(logits, targets, reduction="mean"):
    """Cross-entropy of the next byte, in nats."""
    flat = logits.view(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.reshape(-1), reduction=reduction)
