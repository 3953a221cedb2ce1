# SPDX-License-Identifier: Apache-2.0
"""Losses as functions, with PyTorch's arguments; `nn.functional` is where they are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline import _C
from paceline.dtypes import ALL

if TYPE_CHECKING:
    from paceline._tensor import Tensor

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _reduction(op: str, name: str) -> int:
    if name not in _REDUCTIONS:
        raise ValueError(f"[{op}] reduction: got {name!r}, expected one of {list(_REDUCTIONS)}")
    return _REDUCTIONS[name]


def _reduce(op: str, losses: Tensor, reduction: str) -> Tensor:
    kind = _reduction(op, reduction)
    if kind == 0:
        return losses
    return _C.mean(losses, None, False) if kind == 1 else _C.sum(losses, None, False)


def cross_entropy(
    input: _C.Tensor,
    target: _C.Tensor,
    weight: _C.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy between logits and classes, in one pass.

    Parameters
    ----------
    input : Tensor
        Logits: (C), (N, C) or (N, C, d1, ...).
    target : Tensor
        Class indices: (), (N) or (N, d1, ...); or probabilities of the shape of `input`.
    weight : Tensor, optional
        (C): weight of each class.
    size_average, reduce : None
        PyTorch's deprecated arguments; anything but None is refused.
    ignore_index : int
        Targets of this value add nothing.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the weights of the targets.
    label_smoothing : float
        How much of each target is spread over all classes, 0 to 1.
    """
    if size_average is not None or reduce is not None:
        raise TypeError("[cross_entropy] size_average and reduce are gone: use reduction")
    kind = _reduction("cross_entropy", reduction)
    if ALL[target._dtype].is_floating_point:
        return _soft_cross_entropy(input, target, weight, kind, label_smoothing)
    return _C.cross_entropy(input, target, weight, ignore_index, label_smoothing, kind)


def _soft_cross_entropy(
    input: _C.Tensor, target: _C.Tensor, weight: _C.Tensor | None, kind: int, smoothing: float
) -> Tensor:
    if input.shape != target.shape:
        raise RuntimeError(
            f"[cross_entropy] target of probabilities: got {target.shape}, expected {input.shape}"
        )
    dim = 0 if input.ndim == 1 else 1
    classes = input.shape[dim]
    if smoothing:
        target = _C.add(_C.mul(target, 1.0 - smoothing), smoothing / classes)
    losses = _C.mul(_C.log_softmax(input, dim), target)
    if weight is not None:
        losses = _C.mul(losses, _along(weight, dim, input.ndim))
    total = _C.neg(_C.sum(losses, (dim,), False))
    if kind == 0:
        return total
    total_sum = _C.sum(total, None, False)
    if kind == 2:
        return total_sum
    return _C.div(total_sum, input._numel() // classes)


def _along(weight: _C.Tensor, dim: int, ndim: int) -> Tensor:
    # (C) so that it broadcasts along dimension `dim` of ndim.
    return _C.reshape(weight, [-1 if d == dim else 1 for d in range(ndim)])


def nll_loss(
    input: _C.Tensor,
    target: _C.Tensor,
    weight: _C.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of classes, from log-probabilities (N, C, ...) or (C)."""
    if size_average is not None or reduce is not None:
        raise TypeError("[nll_loss] size_average and reduce are gone: use reduction")
    kind = _reduction("nll_loss", reduction)
    dim = 0 if input.ndim == 1 else 1
    if tuple(target.shape) != (*input.shape[:dim], *input.shape[dim + 1 :]):
        raise ValueError(
            f"[nll_loss] target: got shape {tuple(target.shape)}, expected "
            f"{(*input.shape[:dim], *input.shape[dim + 1 :])}"
        )
    counts = _C.ne(target, ignore_index)
    safe = _C.where(counts, target, 0)
    picked = _C.squeeze(_C.gather(input, dim, _C.unsqueeze(safe, dim)), dim)
    share = _C.to_dtype(counts, input._dtype)
    if weight is not None:
        share = _C.mul(share, _C.reshape(_C.index_select(weight, 0, _flat(safe)), safe.shape))
    # where, not a product: an ignored place may hold -inf.
    losses = _C.where(counts, _C.neg(_C.mul(picked, share)), 0.0)
    if kind == 0:
        return losses
    total = _C.sum(losses, None, False)
    return total if kind == 2 else _C.div(total, _C.sum(share, None, False))


def _flat(t: _C.Tensor) -> Tensor:
    return _C.reshape(t, (-1,))


def _check_same(op: str, input: _C.Tensor, target: _C.Tensor) -> None:
    if input.shape != target.shape:
        import warnings

        warnings.warn(
            f"[{op}] target of shape {tuple(target.shape)} differs from input of shape "
            f"{tuple(input.shape)}; they are broadcast, which is rarely what is meant",
            stacklevel=3,
        )


def mse_loss(input: _C.Tensor, target: _C.Tensor, reduction: str = "mean") -> Tensor:
    """Squared difference."""
    _check_same("mse_loss", input, target)
    return _reduce("mse_loss", _C.square(_C.sub(input, target)), reduction)


def l1_loss(input: _C.Tensor, target: _C.Tensor, reduction: str = "mean") -> Tensor:
    """Absolute difference."""
    _check_same("l1_loss", input, target)
    return _reduce("l1_loss", _C.abs(_C.sub(input, target)), reduction)


def smooth_l1_loss(
    input: _C.Tensor, target: _C.Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Squared difference below `beta`, absolute above."""
    _check_same("smooth_l1_loss", input, target)
    gap = _C.abs(_C.sub(input, target))
    if beta == 0.0:
        return _reduce("smooth_l1_loss", gap, reduction)
    near = _C.div(_C.square(gap), 2.0 * beta)
    losses = _C.where(_C.lt(gap, beta), near, _C.sub(gap, 0.5 * beta))
    return _reduce("smooth_l1_loss", losses, reduction)


def binary_cross_entropy_with_logits(
    input: _C.Tensor,
    target: _C.Tensor,
    weight: _C.Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: _C.Tensor | None = None,
) -> Tensor:
    """Cross-entropy of independent yes/no targets in [0, 1], from logits."""
    op = "binary_cross_entropy_with_logits"
    if size_average is not None or reduce is not None:
        raise TypeError(f"[{op}] size_average and reduce are gone: use reduction")
    if input.shape != target.shape:
        raise ValueError(
            f"[{op}] target: got shape {tuple(target.shape)}, expected {tuple(input.shape)}"
        )
    # -log(sigmoid(x)) = max(-x, 0) + log(1 + e^-|x|), which never overflows.
    tail = _C.log(_C.add(_C.exp(_C.neg(_C.abs(input))), 1.0))
    positive = _C.add(_C.relu(_C.neg(input)), tail)
    scale: _C.Tensor = target if pos_weight is None else _C.mul(target, pos_weight)
    rest = _C.mul(_C.sub(1.0, target), _C.add(input, positive))
    losses = _C.add(_C.mul(scale, positive), rest)
    if weight is not None:
        losses = _C.mul(losses, weight)
    return _reduce(op, losses, reduction)
