# SPDX-License-Identifier: Apache-2.0
"""A Llama over bytes: RMS norms, rotary positions, grouped queries, SwiGLU, no biases.

Queries, keys and values come from one product, gate and up from another, and all are used where
they lie. ``from_hugging_face`` takes the weights of transformers' ``LlamaForCausalLM``.
"""

import math
from dataclasses import dataclass

from gpt import LanguageModel

import paceline as torch
import paceline.nn as nn
import paceline.nn.functional as F


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the model; ``hidden`` 0 stands for 8/3 of the width, in steps of 32."""

    layers: int = 6
    heads: int = 6
    key_heads: int = 2
    width: int = 384
    context: int = 256
    vocab: int = 256
    hidden: int = 0
    base: float = 10000.0
    eps: float = 1e-5
    tied: bool = True

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of {self.heads} heads")
        if self.heads % self.key_heads:
            raise ValueError(f"{self.key_heads} heads of keys do not divide {self.heads} heads")

    @property
    def inner(self):
        """Width of the network between two attentions."""
        return self.hidden or math.ceil(8 * self.width / 3 / 32) * 32


class Attention(nn.Module):
    """Causal self-attention; groups of queries share a head of keys and values."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.key_heads = config.heads, config.key_heads
        every = config.heads + 2 * config.key_heads
        self.qkv = nn.Linear(config.width, every * (config.width // config.heads), bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, rotary):
        b, t, c = x.shape
        # (B, H + 2 Hkv, T, D), heads of queries, keys, values; nothing below copies them.
        packed = self.qkv(x).view(b, t, -1, c // self.heads).transpose(1, 2)
        v = packed[:, self.heads + self.key_heads :]
        q, k = rotary(packed[:, : -self.key_heads]).split([self.heads, self.key_heads], dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    """Attention and a gated network, each added to what it reads."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, config.eps)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.width, config.eps)
        self.gate_up = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x, rotary):
        x = x + self.attention(self.norm1(x), rotary)
        return x + self.down(F.swiglu(self.gate_up(self.norm2(x))))


class Llama(LanguageModel):
    """The language model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.rotary = nn.RotaryEmbedding(config.width // config.heads, config.context, config.base)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.initialise()

    def initialise(self):
        """Normal of 0.02, and less where a block adds to the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * self.config.layers) if adds else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def forward(self, bytes_in):
        """Give the logits (B, T, vocab) of the byte that follows each of ``bytes_in`` (B, T)."""
        x = self.tokens(bytes_in)
        for block in self.blocks:
            x = block(x, self.rotary)
        return self.head(self.norm(x))


def from_hugging_face(state, config):
    """Rename and pack the tensors of ``LlamaForCausalLM.state_dict()`` for ``load_state_dict``."""
    renamed = {
        "tokens.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["model.embed_tokens.weight" if config.tied else "lm_head.weight"],
    }
    for i in range(config.layers):

        def of(*names, layer=f"model.layers.{i}."):
            return torch.cat([state[f"{layer}{name}.weight"] for name in names])

        renamed |= {
            f"blocks.{i}.norm1.weight": of("input_layernorm"),
            f"blocks.{i}.attention.qkv.weight": of(*(f"self_attn.{p}_proj" for p in "qkv")),
            f"blocks.{i}.attention.out.weight": of("self_attn.o_proj"),
            f"blocks.{i}.norm2.weight": of("post_attention_layernorm"),
            f"blocks.{i}.gate_up.weight": of("mlp.gate_proj", "mlp.up_proj"),
            f"blocks.{i}.down.weight": of("mlp.down_proj"),
        }
    return renamed
