# SPDX-License-Identifier: Apache-2.0
"""Kernels on one GPU, in either library (gpu.py asks): ``go NAME`` gives bytes or operations per
second of one call, as many enqueued as take a tenth of a second, then one synchronisation.

Bytes are those that the definition must read and write once, whatever an implementation moves.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import answer

Timed = tuple[Callable[[], Any], float]  # the call, and its bytes (or operations)

# Of GPT-2 124 M at 64 sequences of 1024 tokens; width, vocabulary; the optimizer's elements.
SIZES = {"gpt2": (65536, 768, 50304, 124_475_904), "tiny": (64, 32, 128, 1000)}
PRODUCTS = {
    "gpt2": {
        "8192 x 8192 x 8192": (8192, 8192, 8192),
        "qkv: 65536 x 2304 x 768": (65536, 2304, 768),
        "fc1: 65536 x 3072 x 768": (65536, 3072, 768),
        "fc2: 65536 x 768 x 3072": (65536, 768, 3072),
        "head: 16384 x 50304 x 768": (16384, 50304, 768),
    },
    "tiny": {"32 x 32 x 32": (32, 32, 32)},
}


def swiglu(torch: Any, x: Any) -> Any:
    """silu(gate) * up of a packed product, as a user of either library writes it."""
    functional = torch.nn.functional
    if hasattr(functional, "swiglu"):
        return functional.swiglu(x)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotary(torch: Any, size: str) -> Timed:
    """Queries as views of a packed projection, turned: by one operator or as in transformers."""
    rows, width, _, _ = SIZES[size]
    head, length = min(width // 2, 64), min(rows, 1024)
    qkv = torch.randn(rows // length, length, 3 * width).to(torch.bfloat16).to("cuda")
    x = qkv[:, :, :width].view(-1, length, width // head, head).transpose(1, 2)
    angles = torch.arange(length).float().unsqueeze(1) * 0.01 ** (torch.arange(head // 2) / head)
    cos, sin = angles.cos().to("cuda"), angles.sin().to("cuda")
    functional, half, amount = torch.nn.functional, head // 2, 2.0 * 2 * rows * width
    if hasattr(functional, "rotary_embedding"):
        return lambda: functional.rotary_embedding(x, cos, sin), amount
    cos, sin = (torch.cat([t, t], dim=1).to(torch.bfloat16) for t in (cos, sin))

    def turn() -> Any:
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    return turn, amount


def forward_kernels(torch: Any, size: str) -> dict[str, Callable[[], Timed]]:
    """Calls that are made when they are asked for, in bf16."""
    rows, width, vocab, _ = SIZES[size]
    low = torch.bfloat16
    functional = torch.nn.functional

    def new(*shape: int, dtype: Any = low) -> Any:
        return torch.randn(*shape).to(dtype).to("cuda")

    def unary(call: Callable[[Any], Any]) -> Timed:
        x = new(rows, 4 * width)
        return lambda: call(x), 2.0 * 2 * rows * 4 * width

    def copy() -> Timed:
        x, y = new(rows, 4 * width), new(rows, 4 * width)
        return lambda: y.copy_(x), 2.0 * 2 * rows * 4 * width

    def add() -> Timed:
        x, y = new(rows, 4 * width), new(rows, 4 * width)
        return lambda: x + y, 3.0 * 2 * rows * 4 * width

    def layer_norm() -> Timed:
        x, w, b = new(rows, width), new(width), new(width)
        return lambda: functional.layer_norm(x, (width,), w, b), 2.0 * 2 * rows * width

    def cross_entropy() -> Timed:
        few = rows // 4
        x, t = new(few, vocab), torch.randint(0, vocab, (few,)).to("cuda")
        return lambda: functional.cross_entropy(x, t), 2.0 * few * vocab

    def embedding() -> Timed:
        w, ids = new(vocab, width), torch.randint(0, vocab, (rows,)).to("cuda")
        return lambda: functional.embedding(ids, w), 2.0 * 2 * rows * width

    def cast() -> Timed:
        x = new(rows, width)
        return x.float, 6.0 * rows * width

    def gated() -> Timed:
        x = new(rows, 4 * width)
        return partial(swiglu, torch, x), 1.5 * 2 * rows * 4 * width

    def total() -> Timed:
        x = new(rows, width)
        return x.sum, 2.0 * rows * width

    return {
        "copy": copy, "add": add, "layer_norm": layer_norm, "cross_entropy": cross_entropy,
        "embedding": embedding, "cast to fp32": cast, "sum": total,
        "gelu (tanh)": lambda: unary(lambda x: functional.gelu(x, approximate="tanh")),
        "softmax of rows": lambda: unary(lambda x: functional.softmax(x, dim=-1)),
        "dropout": lambda: unary(lambda x: functional.dropout(x, 0.1)),
        "swiglu": gated, "rotary": partial(rotary, torch, size),
    }  # fmt: skip


def other_kernels(torch: Any, size: str) -> dict[str, Callable[[], Timed]]:
    """The optimizer, and gradients: of each the call alone, by a graph that is kept."""
    rows, width, _, elements = SIZES[size]
    functional = torch.nn.functional

    def adamw() -> Timed:
        weight = torch.nn.Parameter(torch.zeros(elements).to("cuda"))
        weight.grad = torch.ones(elements).to("cuda")
        optimizer = torch.optim.AdamW([weight], lr=1e-3)
        return optimizer.step, 7.0 * 4 * elements

    def gradient(call: Callable[[Any], Any], columns: int, passes: float) -> Timed:
        x = torch.randn(rows, columns).to(torch.bfloat16).to("cuda").requires_grad_()
        out = call(x)
        seed = torch.ones_like(out)

        def run() -> None:
            x.grad = None
            out.backward(seed, retain_graph=True)

        return run, passes * 2 * rows * columns

    def layer_norm(x: Any) -> Any:
        return functional.layer_norm(x, (width,))

    def gelu(x: Any) -> Any:
        return functional.gelu(x, approximate="tanh")

    return {
        "AdamW, fp32": adamw,
        "layer_norm, gradient": lambda: gradient(layer_norm, width, 3.0),
        "gelu (tanh), gradient": lambda: gradient(gelu, 4 * width, 3.0),
        "swiglu, gradient": lambda: gradient(partial(swiglu, torch), 4 * width, 2.5),
        "softmax, gradient": lambda: gradient(lambda x: functional.softmax(x, -1), width, 3.0),
    }


def classifier(torch: Any, size: str) -> Timed:
    """The head's loss and gradients: fused where that is the library's usual way."""
    rows, width, vocab, _ = SIZES[size]
    few, functional = rows // 4, torch.nn.functional
    x = torch.randn(few, width).to(torch.bfloat16).to("cuda").requires_grad_()
    w = torch.nn.Parameter((torch.randn(vocab, width) * 0.02).to(torch.bfloat16).to("cuda"))
    t = torch.randint(0, vocab, (few,)).to("cuda")

    def run() -> None:
        x.grad = w.grad = None
        if torch.__name__ == "paceline":
            loss = functional.linear_cross_entropy(x, w, t)
        else:
            loss = functional.cross_entropy(functional.linear(x, w).float(), t)
        loss.backward()

    return run, 3 * 2.0 * few * vocab * width


def products(torch: Any, size: str) -> dict[str, Callable[[], Timed]]:
    """Matrix products in bf16, by operations."""

    def product(m: int, n: int, k: int) -> Timed:
        x = torch.randn(m, k).to(torch.bfloat16).to("cuda")
        w = torch.randn(n, k).to(torch.bfloat16).to("cuda")
        return lambda: torch.nn.functional.linear(x, w), 2.0 * m * n * k

    found: dict[str, Callable[[], Timed]] = {
        name: partial(product, *shape) for name, shape in PRODUCTS[size].items()
    }
    found["classifier and its gradients"] = partial(classifier, torch, size)
    return found


def rate(torch: Any, timed: Timed, seconds: float) -> float:
    """How much of its amount the call does per second."""
    call, amount = timed

    def took(n: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    took(2)
    return amount / took(max(1, min(1000, int(seconds / took(1)))))


def main() -> None:
    library, size = sys.argv[1:3]
    torch: Any = importlib.import_module(library)
    if not torch.cuda.is_available():
        raise SystemExit(f"[benchmarks] {library} sees no GPU")
    found = {**forward_kernels(torch, size), **other_kernels(torch, size), **products(torch, size)}
    seconds = 0.1 if size == "gpt2" else 0.0

    def go(*words: str) -> float:
        return rate(torch, found[" ".join(words)](), seconds)

    names = [list(forward_kernels(torch, size)), list(other_kernels(torch, size)),
             list(products(torch, size))]  # fmt: skip
    answer.serve({"go": go}, {"seconds": 0.0, "names": names})


if __name__ == "__main__":
    main()
