# SPDX-License-Identifier: Apache-2.0
"""Layers with PyTorch's names, arguments, defaults and initial distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paceline import _C
from paceline._device import place
from paceline._factories import Where
from paceline._tensor import Tensor
from paceline.dtypes import dtype, float_code
from paceline.nn import functional as F
from paceline.nn import init
from paceline.nn.module import Module
from paceline.nn.parameter import Parameter


class Linear(Module):
    """``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last dimension before and after.
    bias : bool
        Whether there is a bias.
    device : device, optional
        Where the parameters live.
    dtype : dtype, optional
        Their dtype.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Where = None,
        dtype: dtype | None = None,
    ) -> None:
        super().__init__()
        at, code = place("Linear", device), float_code(dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(_C.empty((out_features, in_features), code, at))
        if bias:
            self.bias = Parameter(_C.empty((out_features,), code, at))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values: both uniform within 1 / sqrt(in_features)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return _C.linear(input, self.weight, self.bias, 0)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Embedding(Module):
    """Rows of a table, by index.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and their length.
    padding_idx : int, optional
        A row that starts as zeros and is not trained.
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Where = None,
        dtype: dtype | None = None,
    ) -> None:
        super().__init__()
        at = place("Embedding", device)
        if max_norm is not None or scale_grad_by_freq or sparse:
            raise NotImplementedError(
                "[Embedding] max_norm, scale_grad_by_freq and sparse are not built: "
                f"got {max_norm}, {scale_grad_by_freq}, {sparse}"
            )
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise AssertionError("Padding_idx must be within num_embeddings")
            padding_idx %= num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        if _weight is None:
            table = _C.empty((num_embeddings, embedding_dim), float_code(dtype), at)
            self.weight = Parameter(table, requires_grad=not _freeze)
            self.reset_parameters()
        else:
            if tuple(_weight.shape) != (num_embeddings, embedding_dim):
                raise AssertionError(
                    "Shape of weight does not match num_embeddings and embedding_dim"
                )
            self.weight = Parameter(_weight, requires_grad=not _freeze)

    def reset_parameters(self) -> None:
        """Draw new values of mean 0 and variance 1."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            init.zeros_(self.weight.data[self.padding_idx])

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding_idx
        return _C.embedding(self.weight, input, -1 if padding is None else padding)

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None
    ) -> Embedding:
        """An embedding over the memory of a table."""
        rows, width = embeddings.shape
        return cls(rows, width, padding_idx, _weight=embeddings, _freeze=freeze)

    def extra_repr(self) -> str:
        tail = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{tail}"


class RotaryEmbedding(Module):
    """Turns pairs of numbers of queries and keys by angles that grow with their position.

    The tables are buffers that `state_dict` leaves out; `~paceline.nn.functional.rotary_embedding`
    says which pairs.

    Parameters
    ----------
    dim : int
        Width of a head, an even number.
    max_position : int
        How many positions the tables hold.
    base : float
        The slowest pair turns by nearly ``1 / base`` of a radian a position.
    device : device, optional
        Where the tables live.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, dim: int, max_position: int, base: float = 10000.0, device: Where = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.max_position = max_position
        self.base = base
        cos, sin = F.rotary_tables(max_position, dim, base, device=device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input: Tensor, position: int = 0) -> Tensor:
        """Turn `input` (..., T, D), whose first row stands at `position`."""
        return F.rotary_embedding(input, self.cos, self.sin, position)

    def extra_repr(self) -> str:
        return f"{self.dim}, max_position={self.max_position}, base={self.base}"


def _sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(normalized_shape, int):
        return (normalized_shape,)
    return tuple(normalized_shape)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last dimensions, then ``* weight + bias``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of those dimensions.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether there are a weight and a bias.
    bias : bool
        Whether there is a bias.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Where = None,
        dtype: dtype | None = None,
    ) -> None:
        super().__init__()
        at = place("LayerNorm", device)
        self.normalized_shape = shape = _sizes(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        code = float_code(dtype)
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            value = Parameter(_C.empty(shape, code, at)) if wanted else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class RMSNorm(Module):
    """``input / sqrt(mean(input ** 2) + eps)`` over the last dimensions, then ``* weight``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of those dimensions.
    eps : float, optional
        Added to the mean of squares; by default as `functional.rms_norm`.
    elementwise_affine : bool
        Whether there is a weight.
    device : device, optional
        Where the weight lives.
    dtype : dtype, optional
        Its dtype.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Where = None,
        dtype: dtype | None = None,
    ) -> None:
        super().__init__()
        at, code = place("RMSNorm", device), float_code(dtype)
        self.normalized_shape = _sizes(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        value = _C.empty(self.normalized_shape, code, at) if elementwise_affine else None
        self.register_parameter("weight", None if value is None else Parameter(value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class Dropout(Module):
    """In training, zeroes elements with probability `p` and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Identity(Module):
    """Gives its input back; takes any arguments, so that it can stand for any layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Flatten(Module):
    """Joins the dimensions from `start_dim` to `end_dim`."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits one dimension into several."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
