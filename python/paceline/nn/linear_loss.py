# SPDX-License-Identifier: Apache-2.0
"""A linear layer and the cross-entropy of what it gives, without the whole logits in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paceline import _C
from paceline.dtypes import ALL, dtype
from paceline.nn import losses

if TYPE_CHECKING:
    from paceline._tensor import Tensor

_POLICIES = ("auto", "accurate", "balanced", "compact")


@dataclass(frozen=True, slots=True)
class LinearCrossEntropyOptions:
    """How `linear_cross_entropy` cuts its rows into chunks.

    Parameters
    ----------
    allow_retain_graph : bool
        PyTorch's; here a second backward pass over a retained graph is always possible.
    batch_chunk_size : int, optional
        Rows of a chunk.
    chunking_method : str, optional
        "auto": as many rows as keep the products fast and the chunk small, for the device
        (docs/architecture.md). "aspect_ratio": so many that a chunk's logits take the memory of
        the input; "aspect_ratio:N": an N-th of them. None: `batch_chunk_size`, or all rows.
    acc_policy : {"auto", "accurate", "balanced", "compact"}
        PyTorch's; here gradients are always summed over chunks in fp32 (fp64 for fp64).
    acc_dtype : dtype, optional
        float32, or float64 for float64 inputs, which is what None means.
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: Literal["accurate", "balanced", "compact", "auto"] = "auto"
    acc_dtype: dtype | None = None

    def __post_init__(self) -> None:
        size, method = self.batch_chunk_size, self.chunking_method
        if size is not None and (not isinstance(size, int) or size <= 0):
            raise ValueError(f"[linear_cross_entropy] batch_chunk_size: got {size!r}, expected > 0")
        if method not in (None, "auto") and self._divisor() < 1:
            raise ValueError(
                f"[linear_cross_entropy] chunking_method: got {method!r}, expected 'auto', "
                "'aspect_ratio', 'aspect_ratio:N' or None"
            )
        if self.acc_policy not in _POLICIES:
            raise ValueError(
                f"[linear_cross_entropy] acc_policy: got {self.acc_policy!r}, expected one of "
                f"{list(_POLICIES)}"
            )
        if self.acc_dtype is not None and str(self.acc_dtype).split(".")[-1] not in (
            "float32",
            "float64",
        ):
            raise ValueError(
                f"[linear_cross_entropy] acc_dtype: got {self.acc_dtype}, expected None, float32 "
                "or float64"
            )

    def _divisor(self) -> int:
        name, colon, number = (self.chunking_method or "").partition(":")
        if name != "aspect_ratio":
            return 0
        return int(number) if colon and number.isdigit() else 0 if colon else 1

    def _rows(self, rows: int, in_features: int, classes: int) -> int:
        """Rows of a chunk; 0: the operator chooses."""
        size, method = self.batch_chunk_size, self.chunking_method
        if method == "auto":
            return size or 0
        if method is None:
            return size or max(rows, 1)
        target = -(-rows // max(-(-classes // max(in_features, 1)), 1))
        power = 1 << max(target - 1, 0).bit_length()
        wanted = max(min(power // self._divisor(), rows), 1)
        if size is not None and min(size, rows) != wanted:
            raise ValueError(
                f"[linear_cross_entropy] batch_chunk_size {size} and chunking_method {method!r} "
                f"disagree: {wanted} rows; pass only one of them"
            )
        return wanted


def linear_cross_entropy(
    input: _C.Tensor,
    linear_weight: _C.Tensor,
    target: _C.Tensor,
    *,
    linear_bias: _C.Tensor | None = None,
    weight: _C.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)`` in chunks of rows.

    The whole logits never lie in memory. With a mean or a sum the gradients are computed in the
    forward pass and kept; a later change of `linear_weight` in place then changes nothing in them.
    With ``reduction="none"`` the backward pass makes the logits once more, and such a change is
    refused there.

    Parameters
    ----------
    input : Tensor
        (in_features) or (N, in_features).
    linear_weight : Tensor
        (C, in_features); or (C, d1, ..., in_features), which is computed without chunks.
    target : Tensor
        Class indices: (), (N) or (N, d1, ...); or probabilities of the logits' shape, which are
        computed without chunks.
    linear_bias : Tensor, optional
        (C) or (C, d1, ...).
    weight : Tensor, optional
        (C): weight of each class.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the weights of the targets.
    ignore_index : int, optional
        Targets of this value add nothing; None: -100.
    label_smoothing : float
        How much of each target is spread over all classes, 0 to 1.
    options : LinearCrossEntropyOptions, optional
        How large the chunks are; None: chosen.

    Examples
    --------
    >>> import paceline, paceline.nn.functional as F
    >>> x, w = paceline.ones(4, 8), paceline.zeros(10, 8)
    >>> round(F.linear_cross_entropy(x, w, paceline.zeros(4).long()).item(), 4)
    2.3026
    """
    kind = losses._reduction("linear_cross_entropy", reduction)
    _check(input, linear_weight, linear_bias)
    soft = ALL[target._dtype].is_floating_point
    if soft and ignore_index is not None:
        raise RuntimeError(
            "[linear_cross_entropy] ignore_index is for class indices: got a target of "
            "probabilities"
        )
    ignored = -100 if ignore_index is None else ignore_index
    if linear_weight.ndim > 2 or soft:
        return _whole(
            input, linear_weight, target, linear_bias,
            {"weight": weight, "reduction": reduction, "ignore_index": ignored,
             "label_smoothing": label_smoothing, "chunked": options is not None},
        )  # fmt: skip
    rows = _chunk_rows(options, input, linear_weight) if options is not None else 0
    return _C.linear_cross_entropy(
        input, linear_weight, target, linear_bias, weight, ignored, label_smoothing, kind, rows
    )


def _check(input: _C.Tensor, linear_weight: _C.Tensor, bias: _C.Tensor | None) -> None:
    op = "linear_cross_entropy"
    if input.ndim not in (1, 2):
        raise RuntimeError(
            f"[{op}] input: got shape {tuple(input.shape)}, expected (in_features) or "
            "(N, in_features); flatten what comes before"
        )
    if linear_weight.ndim < 2 or linear_weight.shape[-1] != input.shape[-1]:
        raise RuntimeError(
            f"[{op}] linear_weight: got shape {tuple(linear_weight.shape)}, expected "
            f"(C, {input.shape[-1]})"
        )
    if linear_weight.ndim > 2 and input.ndim != 2:
        raise RuntimeError(
            f"[{op}] a linear_weight of shape {tuple(linear_weight.shape)} needs rows: got input "
            f"of shape {tuple(input.shape)}, expected (N, in_features)"
        )
    if bias is not None and tuple(bias.shape) != tuple(linear_weight.shape[:-1]):
        raise RuntimeError(
            f"[{op}] linear_bias: got shape {tuple(bias.shape)}, expected "
            f"{tuple(linear_weight.shape[:-1])}"
        )


def _chunk_rows(options: LinearCrossEntropyOptions, input: _C.Tensor, weight: _C.Tensor) -> int:
    low = str(ALL[input._dtype]).split(".")[-1]
    wide = str(options.acc_dtype).split(".")[-1]
    if wide == "float64" and low != "float64" or wide == "float32" and low == "float64":
        raise RuntimeError(
            f"[linear_cross_entropy] acc_dtype: got {wide} for an input of {low}; expected None"
        )
    n, k = (input.shape[0] if input.ndim == 2 else 1), input.shape[-1]
    return options._rows(n, k, weight.shape[0])


def _whole(
    input: _C.Tensor,
    linear_weight: _C.Tensor,
    target: _C.Tensor,
    bias: _C.Tensor | None,
    how: dict[str, object],
) -> Tensor:
    # What the chunked operator has no form for: several losses to a row, soft targets.
    if how.pop("chunked"):
        import warnings

        warnings.warn(
            "[linear_cross_entropy] options are not used: got a target of shape "
            f"{tuple(target.shape)} and linear_weight of shape {tuple(linear_weight.shape)}, "
            "expected class indices (N) and (C, in_features)",
            stacklevel=3,
        )
    classes, *more = linear_weight.shape[:-1]
    flat = _C.reshape(linear_weight, (math.prod(more, start=classes), input.shape[-1]))
    line = _C.reshape(bias, (-1,)) if bias is not None else None
    logits = _C.linear(input, flat, line, 0)
    if more:
        logits = _C.reshape(logits, (input.shape[0], classes, *more))
    return losses.cross_entropy(logits, target, **how)  # type: ignore[arg-type]
