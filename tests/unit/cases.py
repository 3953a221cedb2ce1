# SPDX-License-Identifier: Apache-2.0
"""Expressions that are evaluated here and by PyTorch, and what PyTorch gave.

Where PyTorch is installed it is asked; elsewhere ``recorded.json`` answers, which
``python tests/unit/cases.py`` writes (with PyTorch, from this folder's parent).
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_name("recorded.json")
DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]

MAKERS = [
    "torch.zeros(2, 3)", "torch.ones((2, 3))", "torch.zeros(())", "torch.full((2,), 3)",
    "torch.full((2,), 3.5)", "torch.full((2,), True)", "torch.arange(5)", "torch.arange(1, 7, 2)",
    "torch.arange(0, 1, 0.25)", "torch.arange(5, 0, -1)", "torch.linspace(0, 1, 5)",
    "torch.linspace(-3, 10, 7)", "torch.linspace(1, 1, 1)", "torch.eye(3)", "torch.eye(2, 4)",
    "torch.zeros_like(torch.ones(2, dtype=torch.int32))", "torch.ones_like(torch.zeros(3))",
    "torch.full_like(torch.zeros(2), 7)", "torch.zeros([2, 2], dtype=torch.float64)",
]  # fmt: skip

METHODS = [
    "x.sum()", "x.sum(1)", "x.sum((0, 2), keepdim=True)", "x.mean(-1)", "x.mean()", "x.prod(1)",
    "x.max()", "x.max(1).values", "x.max(dim=1, keepdim=True)[1]", "x.min(2)[0]", "x.min()",
    "x.argmax()", "x.argmax(1)", "x.argmin(-1, keepdim=True)", "x.amax((0, 1))", "x.amin(0)",
    "x.var()", "x.var(1)", "x.var(1, unbiased=False)", "x.var(False)", "x.std(dim=(0, 2))",
    "x.var(dim=1, correction=0, keepdim=True)", "x.norm()", "x.norm(1)", "x.norm(p=3, dim=1)",
    "x.norm(float('inf'))", "x.cumsum(1)", "x.sort(1)[0]", "x.sort(dim=-1, descending=True)[1]",
    "x.argsort(1)", "x.topk(2, 1)[0]", "x.topk(2, largest=False).indices", "x.any()", "x.all(1)",
    "x.view(6, 4)", "x.view(-1)", "x.reshape((4, -1))", "x.transpose(0, 2)", "x.permute(2, 0, 1)",
    "x.permute((1, 0, 2))", "x[0].t()", "x[0].T", "x.mT", "x.flatten()", "x.flatten(1)",
    "x.flatten(0, 1)", "x.unflatten(2, (2, 2))", "x.unsqueeze(1)", "x.unsqueeze(-1)",
    "x.unsqueeze(0).squeeze(0)", "x[:1].squeeze()", "x[:, :1].expand(2, 5, 4)",
    "x[0, 0].expand(3, -1)", "torch.cat(x.chunk(2, 2))", "torch.cat(x.split(2, 1), 1)",
    "torch.stack(x.unbind(1))", "x.split([1, 2], dim=1)[1]", "x.narrow(1, 1, 2)", "x.select(1, -1)",
    "x.repeat(1, 2, 1)", "x[0].repeat(2, 1, 1)", "x.flip(0)", "x.flip([1, 2])", "x[0].tril()",
    "x.triu(1)", "x.tril(-1)", "x[0].diagonal()", "x.masked_fill(x > 0, 7.0)", "x.clamp(-0.5, 0.5)",
    "x.clamp(min=0)", "x.masked_select(x > 0)", "x.nonzero()", "(x > 0).nonzero()",
    "x.index_select(1, torch.tensor([2, 0, 0]))", "x.gather(1, torch.tensor([[[0, 1, 2, 0]]]))",
    "x.abs().sqrt()", "x.exp()", "x.abs().log()", "x.sin() + x.cos()", "x.tanh()", "x.sigmoid()",
    "x.relu()", "x.square()", "x.pow(2)", "x.abs() ** 0.5", "2.0 ** x", "x.reciprocal()",
    "x.floor()",
    "x.ceil()", "x.round()", "x.sign()", "-x", "abs(x)", "x.erf()", "x.rsqrt().isnan()",
    "(x / 0).isinf()", "(x / 0).isfinite()", "x.add(x, alpha=2)", "x.sub(1, alpha=3)", "x.mul(3)",
    "x.div(2)", "x.div(0.3, rounding_mode='floor')", "x.remainder(0.3)", "x // 0.3", "x % -0.3",
    "5 - x", "5 / x", "x.eq(x)", "x.ne(0)", "x > 0", "x <= x[0]", "(x > 0) & (x < 1)",
    "(x > 0) | (x < -1)", "~(x > 0)", "(x > 0) ^ (x < 1)", "x.logical_not()", "x.maximum(-x)",
    "x.max(-x)", "x.matmul(x.mT)", "x @ x[0].t()", "x[0].mm(x[0].t())", "x.bmm(x.mT)",
    "x[0].mv(x[0, 0])", "x[0, 0].dot(x[0, 1])", "x.softmax(-1)", "x.log_softmax(1)",
    "x.to(torch.float64)", "x.to(torch.int64)", "x.double()", "x.long()", "x.int()", "x.bool()",
    "x.half()", "x.bfloat16()", "x.byte()[x.byte() < 5]", "x.type_as(torch.zeros(1).double())",
    "x.view_as(torch.zeros(4, 6))", "x.new_zeros(2, 2)", "x.new_full((2,), 3)", "x.new_tensor([1])",
    "x.clone().add_(1)", "x.clone().sub_(x, alpha=2)", "x.clone().mul_(2).div_(3)",
    "x.clone().zero_()", "x.clone().fill_(2)", "x.clone().clamp_(0, 1)", "x.clone().copy_(x[0])",
    "x.clone().masked_fill_(x > 0, -1)", "x.numel()", "x.size(1)", "tuple(x.size())", "x.dim()",
    "tuple(x.stride())", "x.is_contiguous()", "x.t if False else x.mT.is_contiguous()",
    "x.mT.contiguous()", "x.element_size()", "x.nbytes", "x.ndim", "len(x)",
    "x.is_floating_point()",
    "torch.where(x > 0, x, -x)", "torch.where(x > 0)[0]", "torch.where(x > 0, 1.0, x)",
    "torch.outer(x[0, 0], x[0, 1])", "torch.logsumexp(x, 1)", "torch.isclose(x, x + 1e-9)",
    "torch.allclose(x, x + 1e-3)", "torch.equal(x, x.clone())", "torch.hstack([x, x])",
    "torch.vstack([x, x])", "torch.roll(x, 1, 2)", "torch.diag(x[0, 0])", "torch.sum(x, dim=1)",
    "torch.max(x, 1)[0]", "torch.matmul(x, x.mT)", "torch.transpose(x, 0, 1)", "torch.argmax(x, 1)",
    "torch.softmax(x, dim=-1)", "torch.tril(torch.ones(3, 3))", "torch.abs(x)", "torch.mul(x, 2)",
    "torch.clamp(x, min=0.0)", "torch.meshgrid(x[0, 0], x[0, 1], indexing='ij')[1]",
    "torch.multiply(x, 2)", "torch.unsqueeze(x, 0)", "torch.count_nonzero(x > 0)",
    "torch.broadcast_to(x[0], (2, 3, 4))", "torch.numel(x)", "torch.norm(x)", "torch.std(x)",
]  # fmt: skip

CALLS = [
    "F.linear(x, w, b)", "F.relu(x)", "F.gelu(x)", "F.gelu(x, approximate='tanh')", "F.silu(x)",
    "F.glu(x)", "F.glu(x, 0)", "F.glu(x[0], dim=-1)",
    "F.leaky_relu(x, 0.3)", "F.softplus(x * 30)", "F.softplus(x, 2.0)", "F.logsigmoid(x * 50)",
    "F.softmax(x, dim=0)", "F.log_softmax(x, -1)", "F.layer_norm(x, (6,), w[0], w[1], 1e-3)",
    "F.layer_norm(x, (4, 6))", "F.rms_norm(x, (6,), w[0], 1e-3)", "F.rms_norm(x * 1e-4, (4, 6))",
    "F.rms_norm(x.double() * 1e-8, [6], w[1].double())",
    "F.embedding(i, w)", "F.embedding(i, w, padding_idx=2)",
    "F.dropout(x, 0.5, training=False)", "F.dropout(x, 0.0)", "F.one_hot(i)", "F.one_hot(i, 9)",
    "F.normalize(x)", "F.normalize(x, p=1, dim=0)", "F.cosine_similarity(x, w[:1])",
    "F.pad(x, (1, 2))", "F.pad(x, (1, 0, 0, 2), value=3.0)", "F.pad(x, (-1, 1))",
    "F.cross_entropy(x, i[0, :4])", "F.cross_entropy(x, i[0, :4], reduction='none')",
    "F.cross_entropy(x, i[0, :4], reduction='sum', label_smoothing=0.1)",
    "F.cross_entropy(x, i[0, :4], weight=w[0].abs().detach(), label_smoothing=0.2)",
    "F.cross_entropy(x, i[0, :4], ignore_index=1)", "F.cross_entropy(x[0], i[0, 0])",
    "F.cross_entropy(x, w[:4].softmax(1))", "F.cross_entropy(x, w[:4].softmax(1), w[0].abs())",
    "F.cross_entropy(x, w[:4].softmax(1), label_smoothing=0.1, reduction='none')",
    "F.cross_entropy(x.reshape(2, 6, 2), i[:2, :2])", "F.nll_loss(x, i[0, :4])",
    "F.linear_cross_entropy(x, w, i[0, :4] % 6, linear_bias=b)",
    "F.linear_cross_entropy(x, w, i[0, :4], reduction='sum', label_smoothing=0.1)",
    "F.linear_cross_entropy(x, w, i[0, :4], reduction='none', ignore_index=1)",
    "F.linear_cross_entropy(x, w, i[0, :4], weight=w[:, 0].abs().detach())",
    "F.linear_cross_entropy(x[0], w, i[0, 0], reduction='none')",
    "F.linear_cross_entropy(x, w.view(2, 3, 6), i[:1, :3].repeat(4, 1) % 2)",
    "F.linear_cross_entropy(x, w, w[:4].softmax(1))",
    "F.nll_loss(x, i[0, :4], w[0].abs().detach(), ignore_index=2)", "F.nll_loss(x[0], i[0, 1])",
    "F.nll_loss(x, i[0, :4], reduction='none')", "F.nll_loss(x.reshape(2, 6, 2), i[:2, :2])",
    "F.mse_loss(x, w[:4])", "F.l1_loss(x, w[:4], reduction='sum')", "F.smooth_l1_loss(x, w[:4])",
    "F.smooth_l1_loss(x, w[:4], beta=0.3, reduction='none')",
    "F.binary_cross_entropy_with_logits(x * 40, w[:4].sigmoid())",
    "F.binary_cross_entropy_with_logits(x, w[:4].sigmoid(), w[4].detach(), pos_weight=b.abs())",
    "F.scaled_dot_product_attention(x[None], w[None], w[None])",
    "F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True, scale=0.3)",
    "F.scaled_dot_product_attention(x[None], w[None], w[None], attn_mask=m)",
    "F.scaled_dot_product_attention(x[None], w[None], w[None], attn_mask=x.detach())",
    "F.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None])",
    "F.scaled_dot_product_attention(x, w, w)",
    "F.scaled_dot_product_attention(x.view(2, 2, 6), w.view(2, 3, 6), w.view(2, 3, 6), "
    "m[:2, None, :3])",
    "F.scaled_dot_product_attention(x.view(1, 2, 1, 2, 6), w.view(1, 2, 1, 3, 6), "
    "w.view(1, 2, 1, 3, 6), m[0, :3].expand(1, 2, 1, 2, 3))",
    "F.scaled_dot_product_attention(x.view(1, 4, 1, 6), w.view(1, 2, 3, 6), w.view(1, 2, 3, 6), "
    "enable_gqa=True)",
    "F.scaled_dot_product_attention(x.view(4, 1, 6), w.view(2, 3, 6), w.view(2, 3, 6), "
    "m[:4, None, :3], enable_gqa=True, scale=0.7)",
]  # fmt: skip

PRINTED = [
    "torch.arange(2000)",
    "torch.arange(2000.).reshape(2, 1000)",
    "torch.arange(60000).reshape(20, 30, 100)",
    "torch.arange(1001).reshape(1001, 1) * 1.25",
    "torch.arange(30.) / 7",
    "torch.arange(24).reshape(2, 3, 4)",
    "torch.arange(24.).reshape(2, 3, 4) * 1000.5",
    "torch.tensor([1e10, 1.0])",
    "torch.tensor([1e9])",
    "torch.tensor([123456789.0, 2.0])",
    "torch.tensor([0.0, -0.0, 0.00001])",
    "torch.tensor([-math.inf, math.nan, 1e-8])",
    "torch.tensor([math.nan, math.inf])",
    "torch.tensor([[1.0, math.inf], [100000.0, 3.0]])",
    "torch.tensor(1e-7)",
    "torch.tensor([0.1, 0.25], dtype=torch.float16)",
    "torch.arange(40, dtype=torch.float64) / 3",
    "torch.zeros(3, 0, 2)",
    "torch.tensor([[[]]])",
    "torch.arange(100.).reshape(10, 10).t()",
    "torch.ones(2, 2) > 0",
    "torch.arange(15.).reshape(3, 5)[:, ::2]",
    "torch.tensor([1e20] * 30, dtype=torch.float64)",
]

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "dampening": 0.2, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "maximize": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "betas": (0.5, 0.7)}),
]

SHAPES = [(4, 3), (3,), (), (2, 2, 2)]


def _flat(values: Any) -> list[Any]:
    return [v for part in values for v in _flat(part)] if isinstance(values, list) else [values]


def describe(value: Any) -> Any:
    """Dtype, shape and elements of a tensor; anything else as JSON would give it back."""
    if hasattr(value, "dtype"):
        return [str(value.dtype).split(".")[1], list(value.shape), _flat(value.tolist())]
    return list(value) if isinstance(value, tuple) else value


def method(torch: Any, code: str) -> Any:
    """An expression over a tensor x of shape (2, 3, 4)."""
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    return describe(eval(code, {"torch": torch, "x": torch.tensor(values)}))


def call(torch: Any, code: str) -> dict[str, Any]:
    """A function of nn.functional, and the gradients of the sum of its squares."""
    rng = np.random.default_rng(4)
    names = {
        "x": torch.tensor(rng.standard_normal((4, 6)).astype(np.float32)),
        "w": torch.tensor(rng.standard_normal((6, 6)).astype(np.float32)),
        "b": torch.tensor(rng.standard_normal(6).astype(np.float32)),
        "i": torch.tensor(rng.integers(0, 6, (3, 5))),
        "m": torch.tensor(rng.random((4, 6)) > 0.3),
    }
    leaves = [names[k].requires_grad_() for k in ("x", "w")]
    out = eval(code, {"F": torch.nn.functional, **names})
    if out.requires_grad:
        out.square().sum().backward()
    grads = [None if leaf.grad is None else describe(leaf.grad) for leaf in leaves]
    return {"out": describe(out.detach()), "x": grads[0], "w": grads[1]}


def promotion(torch: Any, code: str) -> list[str]:
    """Dtypes of products of two dtypes: both with dimensions, one without, and with a number."""
    one, other = (torch.ones(2, dtype=getattr(torch, name)) for name in code.split())
    results = [one * other, one * other[0], one * True, one * 2, one * 2.5]
    return [str(t.dtype).split(".")[1] for t in results]


def printed(torch: Any, code: str) -> str:
    """The text of a tensor, under the name of this package."""
    text = repr(eval(code, {"torch": torch, "math": math}))
    return text.replace("torch.", "paceline.")


def hundred_steps(torch: Any, code: str) -> list[Any]:
    """Parameters after 100 steps; now and then one has no gradient, so that their counts differ."""
    name, options = OPTIMIZERS[int(code)]
    rng = np.random.default_rng(7)
    draw = lambda shape: torch.tensor(rng.standard_normal(shape).astype(np.float32))  # noqa: E731
    params = [torch.nn.Parameter(draw(shape)) for shape in SHAPES]
    optimizer = getattr(torch.optim, name)(params, **options)
    for step in range(100):
        for i, p in enumerate(params):
            p.grad = None if i == step % 9 else draw(SHAPES[i])
        optimizer.step()
    return [describe(p.detach()) for p in params]


KINDS = {
    "method": (method, MAKERS + METHODS),
    "call": (call, CALLS),
    "promotion": (promotion, [f"{a} {b}" for a in DTYPES for b in DTYPES]),
    "printed": (printed, PRINTED),
    "hundred_steps": (hundred_steps, [str(i) for i in range(len(OPTIMIZERS))]),
}


@functools.cache
def _recorded() -> Any:
    return json.loads(RECORD.read_text())


def expected(kind: str, code: str) -> Any:
    """What PyTorch gives, or gave."""
    try:
        import torch
    except ImportError:
        return _recorded()[kind][code]
    return KINDS[kind][0](torch, code)


def assert_same(own: Any, wanted: Any, rtol: float, atol: float) -> None:
    """Compare two descriptions: dtypes and shapes exactly, elements within the bounds."""
    if isinstance(wanted, list) and len(wanted) == 3 and wanted[0] in DTYPES:
        assert own[:2] == wanted[:2]
        a, b = np.array(own[2], np.float64), np.array(wanted[2], np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    elif isinstance(wanted, float):
        assert math.isclose(own, wanted, rel_tol=rtol, abs_tol=atol)
    else:
        assert own == wanted


def _rounded(value: Any) -> Any:
    # float32 needs 9 digits; the bounds of the tests need 7.
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def record() -> None:
    """Write what PyTorch gives now."""
    import torch

    out = {
        kind: {code: _rounded(run(torch, code)) for code in codes}
        for kind, (run, codes) in KINDS.items()
    }
    lines = (
        f"  {json.dumps(kind)}: {{\n"
        + ",\n".join(f"    {json.dumps(c)}: {json.dumps(v)}" for c, v in entries.items())
        + "\n  }"
        for kind, entries in out.items()
    )
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
