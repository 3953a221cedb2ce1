# SPDX-License-Identifier: Apache-2.0
"""The operators of `paceline.nn` as functions, with PyTorch's arguments.

Losses are in ``losses.py``, activations in ``curves.py``, norms in ``norms.py``; they are
importable from here, where PyTorch has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paceline import _C
from paceline.nn.curves import (
    gelu,
    leaky_relu,
    log_softmax,
    logsigmoid,
    placed,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from paceline.nn.gated import glu, swiglu
from paceline.nn.linear_loss import linear_cross_entropy
from paceline.nn.losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from paceline.nn.norms import fused_add_layer_norm, fused_add_rms_norm, layer_norm, rms_norm
from paceline.nn.rotary import rotary_embedding, rotary_tables

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = [
    "binary_cross_entropy_with_logits",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "embedding",
    "fused_add_layer_norm",
    "fused_add_rms_norm",
    "gelu",
    "glu",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "logsigmoid",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "rotary_tables",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "swiglu",
    "tanh",
]

_ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


def linear(
    input: _C.Tensor,
    weight: _C.Tensor,
    bias: _C.Tensor | None = None,
    *,
    activation: str | None = None,
) -> Tensor:
    """``input @ weight.T + bias``.

    Parameters
    ----------
    input : Tensor
        (..., in_features).
    weight : Tensor
        (out_features, in_features).
    bias : Tensor, optional
        (out_features).
    activation : {"relu", "gelu", "gelu_tanh"}, optional
        Applied in the same pass over memory. PyTorch has no such argument.
    """
    try:
        code = _ACTIVATIONS[activation]
    except KeyError:
        raise ValueError(
            f"[linear] activation: got {activation!r}, expected one of {list(_ACTIVATIONS)}"
        ) from None
    return _C.linear(input, weight, bias, code)


def embedding(
    input: _C.Tensor,
    weight: _C.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    r"""Rows of `weight` at the indices `input`; `padding_idx` gets no gradient.

    Parameters
    ----------
    input : Tensor
        Indices, int64 or int32, any shape.
    weight : Tensor
        (rows, width).
    padding_idx : int, optional
        The row that gets no gradient; negative ones count from the end.
    max_norm, norm_type, scale_grad_by_freq, sparse
        As in PyTorch; only their defaults are built.

    Returns
    -------
    Tensor
        (\*input.shape, width).

    Raises
    ------
    NotImplementedError
        If one of the last four is asked for.
    AssertionError
        If `padding_idx` is not a row.
    IndexError
        If an index is not a row.
    """
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise NotImplementedError(
            "[embedding] max_norm, scale_grad_by_freq and sparse are not built: "
            f"got {max_norm}, {scale_grad_by_freq}, {sparse}"
        )
    rows = weight.shape[0]
    if padding_idx is None:
        padding_idx = -1
    elif not -rows <= padding_idx < rows:
        raise AssertionError(f"[embedding] padding_idx: got {padding_idx}, expected within {rows}")
    elif padding_idx < 0:
        padding_idx += rows
    return _C.embedding(weight, input, padding_idx)


def dropout(
    input: _C.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero elements with probability `p` and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    p : float
        Probability of a zero, 0 to 1.
    training : bool
        False gives `input` itself.
    inplace : bool
        Write into `input` where no gradient is recorded.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.

    Raises
    ------
    ValueError
        If `p` is out of its range.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"[dropout] p: got {p}, expected 0 to 1")
    if not training or p == 0.0:
        return input  # type: ignore[return-value]
    out = _C.dropout(input, p, None)
    return placed(input, out, inplace)


def scaled_dot_product_attention(
    query: _C.Tensor,
    key: _C.Tensor,
    value: _C.Tensor,
    attn_mask: _C.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Softmax(query key^T * scale + mask) value, without the whole T x T matrix in memory.

    Parameters
    ----------
    query : Tensor
        (..., T, D).
    key, value : Tensor
        (..., S, D), the leading dimensions those of `query`; but see `enable_gqa`.
    attn_mask : Tensor, optional
        bool (True takes part) or floating (added), of a shape that broadcasts to (..., T, S).
    dropout_p : float
        Probability with which attention weights are dropped; also outside training.
    is_causal : bool
        Query i sees keys 0 to i; excludes `attn_mask`.
    scale : float, optional
        1 / sqrt(D) by default.
    enable_gqa : bool
        `key` and `value` may have fewer heads (their third dimension from the end): each serves a
        group of the query's, without a copy.

    Returns
    -------
    Tensor
        (..., T, D).

    Raises
    ------
    RuntimeError
        If the shapes do not fit, or both `attn_mask` and `is_causal` are given.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("[attention] got both attn_mask and is_causal, expected one of them")
    number = math.nan if scale is None else scale
    if query.ndim == 4:
        return _C.attention(query, key, value, attn_mask, dropout_p, is_causal, number, enable_gqa)
    kept = 3 if enable_gqa else 2  # dimensions that are not a batch
    lead = tuple(query.shape[:-kept])
    if any(t.ndim < kept or tuple(t.shape[:-kept]) != lead for t in (query, key, value)):
        own = ("H, T, D", "Hkv, S, D") if enable_gqa else ("T, D", "S, D")
        raise RuntimeError(
            f"[attention] leading dimensions: got {query.shape}, {key.shape} and {value.shape}, "
            f"expected (..., {own[0]}), (..., {own[1]}) and (..., {own[1]}) with the same ones"
        )
    if attn_mask is not None and attn_mask.ndim > 2:
        full = (*query.shape[:-1], key.shape[-2])
        attn_mask = _as_heads(_C.expand(attn_mask, full), kept)
    out = _C.attention(
        _as_heads(query, kept),
        _as_heads(key, kept),
        _as_heads(value, kept),
        attn_mask,
        dropout_p,
        is_causal,
        number,
        enable_gqa,
    )
    return _C.reshape(out, query.shape)


def _as_heads(t: _C.Tensor, kept: int) -> Tensor:
    # (..., T, D) as (B, 1, T, D), or (..., H, T, D) as (B, H, T, D)
    heads = t.shape[-3] if kept == 3 else 1
    return _C.reshape(t, (math.prod(t.shape[:-kept]), heads, *t.shape[-2:]))


def one_hot(tensor: _C.Tensor, num_classes: int = -1) -> Tensor:
    """A new last dimension with a 1 at each index, else 0 (int64).

    Parameters
    ----------
    tensor : Tensor
        Classes, integers from 0, shape (...).
    num_classes : int
        How many there are; -1 takes the largest of `tensor` and one more.

    Returns
    -------
    Tensor
        (..., num_classes), int64.

    Raises
    ------
    RuntimeError
        If a class is out of range, or `tensor` is empty and `num_classes` not given.
    """
    if num_classes < 0:
        if tensor._numel() == 0:
            raise RuntimeError("[one_hot] num_classes: got none, expected one for an empty tensor")
        num_classes = int(_C.amax(tensor, None, False).item()) + 1
    if tensor._numel():
        low = _C.amin(tensor, None, False).item()
        high = _C.amax(tensor, None, False).item()
        if low < 0 or high >= num_classes:
            raise RuntimeError(
                f"[one_hot] class: got {low if low < 0 else high}, expected 0 to {num_classes - 1}"
            )
    classes = _C.arange(0, num_classes, 1, 3, tensor._device_index)
    return _C.to_dtype(_C.eq(_C.unsqueeze(tensor, -1), classes), 3)


def normalize(input: _C.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """`input` divided by its norm along `dim`, which is taken as `eps` at least.

    Parameters
    ----------
    input : Tensor
        Floating, any shape.
    p : float
        Order of the norm.
    dim : int
        The dimension along which it is taken.
    eps : float
        The least divisor.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    length = input.norm(p, dim, True)  # type: ignore[attr-defined]
    return _C.div(input, _C.clamp(length, eps, None))


def cosine_similarity(x1: _C.Tensor, x2: _C.Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Cosine of the angle between vectors along `dim`.

    Parameters
    ----------
    x1, x2 : Tensor
        Floating, of shapes that broadcast.
    dim : int
        The dimension of the vectors.
    eps : float
        The least length of a vector.

    Returns
    -------
    Tensor
        The common shape without `dim`; -1 to 1.
    """
    dot = _C.sum(_C.mul(x1, x2), (dim,), False)
    squares = (_C.sum(_C.square(x1), (dim,), False), _C.sum(_C.square(x2), (dim,), False))
    lengths = [_C.clamp(_C.sqrt(s), eps, None) for s in squares]
    return _C.div(dot, _C.mul(lengths[0], lengths[1]))


def pad(
    input: _C.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """`input` with borders: (left, right) of the last dimension, then of the one before, ...

    Parameters
    ----------
    input : Tensor
        Any shape.
    pad : sequence of int
        Widths, two per dimension; negative ones cut off.
    mode : {"constant"}
        Others are not built.
    value : float, optional
        What the borders hold, 0 by default.

    Returns
    -------
    Tensor
        A tensor of its own memory.

    Raises
    ------
    NotImplementedError
        For another mode.
    RuntimeError
        If the widths are odd in number or too many.
    """
    if mode != "constant":
        raise NotImplementedError(f"[pad] mode: got {mode!r}, expected 'constant'")
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise RuntimeError(
            f"[pad] got {len(pad)} numbers, expected two per dimension, {2 * input.ndim} at most"
        )
    out: _C.Tensor = input
    for i in range(0, len(pad), 2):
        dim = input.ndim - 1 - i // 2
        left, right = pad[i], pad[i + 1]
        size = out.shape[dim]
        kept = _C.slice(out, dim, max(-left, 0), size - max(-right, 0), 1)
        parts: list[_C.Tensor] = [kept]
        for where, width in ((0, left), (len(parts) + 1, right)):
            if width > 0:
                shape = [*out.shape]
                shape[dim] = width
                filler = _C.full(shape, value or 0, input._dtype, input._device_index)
                parts.insert(where, filler)
        out = _C.cat(parts, dim) if len(parts) > 1 else kept
    return _C.clone(out) if out is input else out  # type: ignore[return-value]
