# SPDX-License-Identifier: Apache-2.0
"""GPT-2's training step on one GPU: ours through an Accelerator, PyTorch's own (gpu.py asks).

``go N`` gives the seconds of a step: N steps enqueued, then one synchronisation, so that a host
that is ahead of its GPU is not held up. Both libraries: bf16 autocast over fp32 weights, AdamW.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import answer, models


def model_of(torch: Any, size: str, batch: int) -> tuple[Any, Any, Any]:
    """GPT-2 124 M (vocabulary padded to a multiple of 128, tied head), or ``tiny``; on the CPU."""
    layers, heads, width, context, vocab = {
        "gpt2": (12, 12, 768, 1024, 50304),
        "tiny": (1, 2, 16, 8, 32),
    }[size]
    torch.manual_seed(0)
    model = models.make_gpt(torch, layers, heads, width, context, vocab)
    model.head.weight = model.token.weight
    with torch.no_grad():
        model.token.weight.mul_(0.02)
    ids = torch.randint(0, vocab, (batch, context))
    return model, ids, torch.randint(0, vocab, (batch * context,))


def our_step(size: str, batch: int) -> Callable[[], Any]:
    """Give a step of paceline."""
    import paceline

    accelerator = paceline.Accelerator(mixed_precision="bf16")
    model, ids, targets = model_of(paceline, size, batch)
    optimizer = paceline.optim.AdamW(model.parameters(), lr=3e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    ids, targets = ids.to(accelerator.device), targets.to(accelerator.device)

    def step() -> Any:
        logits = model(ids)
        flat = logits.view(-1, logits.shape[-1])
        loss = paceline.nn.functional.cross_entropy(flat, targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def torch_step(way: str, size: str, batch: int) -> Callable[[], Any]:
    """Give a step of PyTorch: ``eager``, ``compiled``, ``compiled-cudnn`` (cuDNN's attention)."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise SystemExit("[benchmarks] PyTorch sees no GPU")
    torch.set_float32_matmul_precision("highest")
    model, ids, targets = model_of(torch, size, batch)
    model, ids, targets = model.cuda(), ids.cuda(), targets.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    attention = importlib.import_module("torch.nn.attention")
    chosen: Any = contextlib.nullcontext
    if way.endswith("cudnn"):
        backend = attention.SDPBackend.CUDNN_ATTENTION

        def chosen() -> Any:
            return attention.sdpa_kernel(backend)

    def loss_of() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(ids)
        return torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets)

    forward = loss_of if way == "eager" else torch.compile(loss_of)

    def step() -> Any:
        with chosen():
            loss = forward()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def main() -> None:
    library, way, size, batch = sys.argv[1:5]
    torch: Any = importlib.import_module(library)
    ours = library == "paceline"
    step = our_step(size, int(batch)) if ours else torch_step(way, size, int(batch))
    first = float(step())

    def go(n: str) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(int(n)):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / int(n)

    for _ in range(2):  # shapes are measured, graphs compiled, memory found
        go("1")
    # A turn may take as long as it takes: "seconds" would have the slow asked once.
    ready = {"seconds": 0.0, "step": go("1"), "loss": first,
             "peak": torch.cuda.max_memory_allocated() / 2**20}  # fmt: skip
    answer.serve({"go": go}, ready)


if __name__ == "__main__":
    main()
