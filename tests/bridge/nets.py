# SPDX-License-Identifier: Apache-2.0
"""Torch models of every kind, and three ways to train one: ours, DDP on Gloo, plain.

Used on ranks, so that both ways train in the same process and are compared there bit by bit.
"""

from __future__ import annotations

import atexit
import gc
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rankside import RANK, WORLD

Step = Callable[[Any], torch.Tensor]  # a loss of a model


class MLP(nn.Module):
    """Three layers, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.twice = nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        return self.last(self.twice(F.relu(self.twice(x))))


class CNN(nn.Module):
    """Convolutions and batch normalisation, whose buffers are rank 0's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        parts = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Decoder with tied embeddings."""

    def __init__(self, vocab: int = 50, width: int = 32, depth: int = 2, context: int = 16) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def qwen3() -> nn.Module:
    """A tiny Qwen3."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    made: nn.Module = AutoModelForCausalLM.from_config(config)
    return made


def gpt2() -> nn.Module:
    """A tiny GPT-2 without dropout."""
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    made: nn.Module = AutoModelForCausalLM.from_config(config)
    return made


def bert() -> nn.Module:
    """A tiny BERT for classification, without dropout."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    made: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return made


def classify(x: torch.Tensor, y: torch.Tensor) -> Step:
    """Make the step of a classifier."""
    return lambda model: F.cross_entropy(model(x), y)


def steps_of(kind: str, rank: int, count: int = 4, batch: int = 4) -> list[Step]:
    """Give the steps of one rank for a kind of model."""
    generator = torch.Generator().manual_seed(100 + rank)
    made: list[Step] = []
    for _ in range(count):
        labels = torch.randint(0, 3, (batch,), generator=generator)
        ids = torch.randint(0, 50, (batch, 12), generator=generator)
        if kind == "mlp":
            made.append(classify(torch.randn(batch, 8, generator=generator), labels))
        elif kind == "cnn":
            made.append(classify(torch.randn(batch, 3, 8, 8, generator=generator), labels))
        elif kind == "gpt":
            made.append(
                lambda model, ids=ids: F.cross_entropy(
                    model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
                )
            )
        elif kind == "qwen3":
            made.append(lambda model, ids=ids: model(input_ids=ids, labels=ids).loss)
        else:
            made.append(lambda model, ids=ids, y=labels: model(input_ids=ids, labels=y).loss)
    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "gpt": GPT,
    "gpt2": gpt2,
    "qwen3": qwen3,
    "bert": bert,
}


def fresh(kind: str) -> nn.Module:
    """Make the same model in every call, on every rank."""
    torch.manual_seed(7)
    return MODELS[kind]()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer that all three ways use."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy parameters, buffers and gradients."""
    named = dict(model.state_dict())
    named.update((f"{n}.grad", p.grad) for n, p in model.named_parameters() if p.grad is not None)
    return {name.replace("module.", ""): value.clone() for name, value in named.items()}


def ours(accelerator: Any, kind: str, steps: list[Step], **options: Any) -> dict[str, torch.Tensor]:
    """Train by paceline."""
    model = fresh(kind)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    for step in steps:
        optimizer.zero_grad(**options)
        accelerator.backward(step(model))
        optimizer.step()
    return snapshot(model)


def start_gloo() -> None:
    """Make torch's own process group between the ranks of the test."""
    leave_at_exit()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    run = os.environ["PACELINE_RUN_ID"]
    path = os.path.join(tempfile.gettempdir(), f"gloo-{run}")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=RANK, world_size=WORLD
    )


def leave_at_exit() -> None:
    """Leave torch's own process group at the end of the process.

    Threads of Gloo's that are then still there end it by SIGABRT now and then ("terminate called
    without an active exception"). Not before: a model wrapped by DistributedDataParallel that
    outlives its group hangs, in PyTorch 2.13 alone, too.
    """

    def leave() -> None:
        if torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def reference(kind: str, steps: list[Step], **options: Any) -> dict[str, torch.Tensor]:
    """Train by DistributedDataParallel, or plainly on one rank."""
    model = fresh(kind)
    optimizer = optimizer_of(model)
    wrapped: Any = model
    if WORLD > 1:
        wrapped = nn.parallel.DistributedDataParallel(model)
    for step in steps:
        optimizer.zero_grad(**options)
        step(wrapped).backward()
        optimizer.step()
    return snapshot(model)


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Name what is not the same, bit by bit."""
    if a.keys() != b.keys():
        return sorted(a.keys() ^ b.keys())
    return [name for name in a if not torch.equal(a[name], b[name])]
