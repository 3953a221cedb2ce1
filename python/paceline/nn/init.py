# SPDX-License-Identifier: Apache-2.0
"""Filling tensors with initial values, in place, with PyTorch's distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paceline import _C

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


class _NoHistory:
    # Filling a parameter is no operation to differentiate.
    def __enter__(self) -> None:
        self._before = _C.set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        _C.set_grad_enabled(self._before)


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: _C.Generator | None = None
) -> Tensor:
    """Uniform numbers of [a, b).

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    a, b : float
        The bounds.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    """
    with _NoHistory():
        _C.uniform_(tensor, a, b, generator)
    return tensor


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: _C.Generator | None = None
) -> Tensor:
    """Normal numbers.

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    mean, std : float
        Centre and standard deviation.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    """
    with _NoHistory():
        _C.normal_(tensor, mean, std, generator)
    return tensor


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: _C.Generator | None = None,
) -> Tensor:
    """Normal numbers, drawn again where they fall outside [a, b].

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    mean, std : float
        Centre and standard deviation before the cut.
    a, b : float
        The bounds, absolute numbers.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Raises
    ------
    ValueError
        If ``a >= b``, or `mean` lies more than two `std` outside of them.
    """
    if not a < b:
        raise ValueError(f"[trunc_normal_] range: got {a} to {b}, expected a < b")
    if mean < a - 2 * std or mean > b + 2 * std:
        raise ValueError(
            f"[trunc_normal_] mean {mean} lies more than 2 std from [{a}, {b}], "
            "where almost nothing would be accepted"
        )
    with _NoHistory():
        at = tensor._device_index
        values = _C.normal(tensor.shape, mean, std, tensor._dtype, generator, at)
        while True:
            outside = _C.logical_or(_C.lt(values, a), _C.gt(values, b))
            if not bool(_C.any(outside, None, False)):
                break
            again = _C.normal(tensor.shape, mean, std, tensor._dtype, generator, at)
            values = _C.where(outside, again, values)
        _C.copy_(tensor, values)
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value everywhere.

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    val : float
        The value.
    """
    with _NoHistory():
        _C.fill_(tensor, val)
    return tensor


def ones_(tensor: Tensor) -> Tensor:
    """Ones.

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    """
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros.

    Parameters
    ----------
    tensor : Tensor
        What is filled, any shape; given back.
    """
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix.

    Parameters
    ----------
    tensor : Tensor
        (rows, columns), filled and given back.

    Raises
    ------
    ValueError
        If it has not two dimensions.
    """
    from paceline._factories import eye

    if tensor.ndim != 2:
        raise ValueError(f"[eye_] dimensions: got {tensor.ndim}, expected 2")
    with _NoHistory():
        _C.copy_(tensor, eye(*tensor.shape))
    return tensor


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Factor by which a nonlinearity shrinks the spread of what goes through it.

    Parameters
    ----------
    nonlinearity : str
        ``"linear"``, ``"identity"``, ``"conv..."``, ``"sigmoid"``, ``"tanh"``, ``"relu"``,
        ``"leaky_relu"`` or ``"selu"``.
    param : float, optional
        The slope of ``leaky_relu``, 0.01 by default.

    Raises
    ------
    ValueError
        For another name.
    """
    if nonlinearity in ("linear", "sigmoid", "identity") or nonlinearity.startswith("conv"):
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3.0
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope * slope))
    if nonlinearity == "selu":
        return 3.0 / 4.0
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def _fans(tensor: Tensor) -> tuple[int, int]:
    # Inputs and outputs of one unit of the layer that the weight belongs to.
    if tensor.ndim < 2:
        raise ValueError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


_calculate_fan_in_and_fan_out = _fans


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: _C.Generator | None = None
) -> Tensor:
    r"""Uniform, with the variance ``2 gain^2 / (fan_in + fan_out)`` (Glorot).

    Parameters
    ----------
    tensor : Tensor
        The weight, (out, in, \*field), filled and given back.
    gain : float
        See `calculate_gain`.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Raises
    ------
    ValueError
        If `tensor` has fewer than two dimensions.
    """
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(
    tensor: Tensor, gain: float = 1.0, generator: _C.Generator | None = None
) -> Tensor:
    r"""Normal, with the variance ``2 gain^2 / (fan_in + fan_out)`` (Glorot).

    Parameters
    ----------
    tensor : Tensor
        The weight, (out, in, \*field), filled and given back.
    gain : float
        See `calculate_gain`.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Raises
    ------
    ValueError
        If `tensor` has fewer than two dimensions.
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    fan = _fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: _C.Generator | None = None,
) -> Tensor:
    r"""Uniform, with the variance ``gain^2 / fan`` (He).

    Parameters
    ----------
    tensor : Tensor
        The weight, (out, in, \*field), filled and given back.
    a : float
        Slope of ``leaky_relu`` left of 0.
    mode : {"fan_in", "fan_out"}
        Keep the variance of the activations, or that of the gradients.
    nonlinearity : str
        What follows the layer; see `calculate_gain`.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Raises
    ------
    ValueError
        If `tensor` has fewer than two dimensions, or `mode` or `nonlinearity` is unknown.
    """
    if tensor._numel() == 0:
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: _C.Generator | None = None,
) -> Tensor:
    r"""Normal, with the variance ``gain^2 / fan`` (He).

    Parameters
    ----------
    tensor : Tensor
        The weight, (out, in, \*field), filled and given back.
    a : float
        Slope of ``leaky_relu`` left of 0.
    mode : {"fan_in", "fan_out"}
        Keep the variance of the activations, or that of the gradients.
    nonlinearity : str
        What follows the layer; see `calculate_gain`.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Raises
    ------
    ValueError
        If `tensor` has fewer than two dimensions, or `mode` or `nonlinearity` is unknown.
    """
    if tensor._numel() == 0:
        return tensor
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)
