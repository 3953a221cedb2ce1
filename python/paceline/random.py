# SPDX-License-Identifier: Apache-2.0
"""Random tensors and the state they come from (Philox; see ``csrc/base/base.h``).

A run with the same seed gives the same numbers on any number of threads.
"""

from __future__ import annotations

import os

from paceline import _C, _device, dtypes
from paceline._factories import Where, beside, finish
from paceline._shape import as_shape
from paceline.dtypes import dtype, float_code, to_code

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline._tensor import Tensor

__all__ = [
    "Generator",
    "bernoulli",
    "default_generator",
    "get_rng_state",
    "initial_seed",
    "manual_seed",
    "multinomial",
    "normal",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "seed",
    "set_rng_state",
]

_U64 = 2**64


def _pack(generator: _C.Generator) -> Tensor:
    raw = generator.seed.to_bytes(8, "little") + generator.offset.to_bytes(8, "little")
    return _C.from_data(list(raw), dtypes.uint8.code)


def _unpack(generator: _C.Generator, state: _C.Tensor) -> None:
    if state._dtype != dtypes.uint8.code or state._numel() != 16:
        raise ValueError(
            f"[set_state] state: got {state._numel()} elements of {dtypes.ALL[state._dtype]!r}, "
            "expected the 16 bytes (uint8) that get_state gave"
        )
    raw = bytes(state.tolist())
    generator.seed = int.from_bytes(raw[:8], "little")
    generator.offset = int.from_bytes(raw[8:], "little")


class Generator(_C.Generator):
    """A stream of random numbers of its own.

    Parameters
    ----------
    device : device, optional
        Accepted: one generator serves every device.
    """

    def __new__(cls, device: Where = None) -> Generator:
        return super().__new__(cls)

    def __init__(self, device: Where = None) -> None:
        if device is not None:
            _device.device(device)  # a name that is none is refused
        super().__init__()

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream that belongs to `seed`."""
        self.seed = seed % _U64
        return self

    def initial_seed(self) -> int:
        """The seed it was started with."""
        return self.seed

    def get_state(self) -> Tensor:
        """Seed and place in the stream, as 16 bytes."""
        return _pack(self)

    def set_state(self, state: _C.Tensor) -> Generator:
        """Go on from what `get_state` gave."""
        _unpack(self, state)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.seed, self.offset)


def _restored(seed: int, offset: int) -> Generator:
    generator = Generator().manual_seed(seed)
    generator.offset = offset
    return generator


#: What is used where no generator is given; its first seed is the system's entropy.
default_generator = Generator().manual_seed(int.from_bytes(os.urandom(8), "little"))
_C.set_default_generator(default_generator)


def seed() -> int:
    """Start the default stream from a seed that the system's entropy decides; gives the seed."""
    chosen = int.from_bytes(os.urandom(8), "little")
    default_generator.seed = chosen
    return chosen


def manual_seed(seed: int) -> Generator:
    """Start the default stream from `seed`, so that a run can be repeated bit for bit.

    Parameters
    ----------
    seed : int
        Any integer; taken modulo 2^64.

    Returns
    -------
    Generator
        The default stream.
    """
    default_generator.seed = int(seed) % _U64
    return default_generator


def initial_seed() -> int:
    """The seed of the default stream."""
    return default_generator.seed


def get_rng_state() -> Tensor:
    """Seed and place of the default stream, as 16 bytes."""
    return _pack(default_generator)


def set_rng_state(new_state: _C.Tensor) -> None:
    """Go on from what `get_rng_state` gave.

    Parameters
    ----------
    new_state : Tensor
        16 bytes, uint8.

    Raises
    ------
    ValueError
        If it is not that.
    """
    _unpack(default_generator, new_state)


def rand(
    *size: Any,
    generator: _C.Generator | None = None,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers of [0, 1).

    Parameters
    ----------
    *size : int or sequence of int
        The shape.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    dtype : dtype, optional
        Floating; float32 by default.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.
    """
    shape, at = as_shape("rand", size), _device.place("rand", device)
    t = _C.uniform(shape, 0.0, 1.0, float_code(dtype), generator, at)
    return finish(t, requires_grad)


def randn(
    *size: Any,
    generator: _C.Generator | None = None,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers of mean 0 and variance 1.

    Parameters
    ----------
    *size : int or sequence of int
        The shape.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    dtype : dtype, optional
        Floating; float32 by default.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.
    """
    shape, at = as_shape("randn", size), _device.place("randn", device)
    t = _C.normal(shape, 0.0, 1.0, float_code(dtype), generator, at)
    return finish(t, requires_grad)


def randint(
    *args: Any,
    low: int | None = None,
    high: int | None = None,
    size: Any = None,
    generator: _C.Generator | None = None,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers of [low, high): ``randint(high, size)`` or ``randint(low, high, size)``.

    Parameters
    ----------
    *args
        The numbers by position; else the keywords of the same meaning.
    low, high : int
        The least number, 0 by default, and the first one above.
    size : sequence of int
        The shape.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    dtype : dtype, optional
        int64 by default.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.

    Raises
    ------
    TypeError
        If `high` or `size` is missing.
    RuntimeError
        If ``low >= high``.
    """
    numbers = list(args)
    if size is None and numbers and isinstance(numbers[-1], (tuple, list)):
        size = numbers.pop()
    if high is None and numbers:
        high = numbers.pop()
    if low is None:
        low = numbers.pop() if numbers else 0
    if numbers or high is None or size is None:
        raise TypeError("[randint] expected (high, size) or (low, high, size), size a tuple")
    if low >= high:
        raise RuntimeError(f"[randint] range: got {low} to {high}, expected low < high")
    shape = as_shape("randint", (size,))
    code, at = to_code(dtype, dtypes.int64.code), _device.place("randint", device)
    return finish(_C.randint(shape, int(low), int(high), code, generator, at), requires_grad)


def randperm(
    n: int,
    *,
    generator: _C.Generator | None = None,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """The integers below `n` in random order.

    Parameters
    ----------
    n : int
        How many.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.
    dtype : dtype, optional
        int64 by default.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.

    Returns
    -------
    Tensor
        (n).
    """
    t = _C.randperm(n, generator, _device.place("randperm", device))
    if dtype is not None:
        t = _C.to_dtype(t, to_code(dtype))
    return finish(t, requires_grad)


def rand_like(
    input: _C.Tensor,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """As `rand`, with the shape and dtype of `input`.

    Parameters
    ----------
    input : Tensor
        Gives the shape and, without `dtype`, the dtype.
    dtype : dtype, optional
        Floating.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.
    """
    code, at = to_code(dtype, input._dtype), beside("rand_like", input, device)
    return finish(_C.uniform(input.shape, 0.0, 1.0, code, None, at), requires_grad)


def randn_like(
    input: _C.Tensor,
    *,
    dtype: dtype | None = None,
    device: Where = None,
    requires_grad: bool = False,
) -> Tensor:
    """As `randn`, with the shape and dtype of `input`.

    Parameters
    ----------
    input : Tensor
        Gives the shape and, without `dtype`, the dtype.
    dtype : dtype, optional
        Floating.
    device : device, optional
        Where to put it. The numbers are the same on every device.
    requires_grad : bool
        Whether gradients are recorded.
    """
    code, at = to_code(dtype, input._dtype), beside("randn_like", input, device)
    return finish(_C.normal(input.shape, 0.0, 1.0, code, None, at), requires_grad)


def normal(
    mean: float | _C.Tensor,
    std: float | _C.Tensor = 1.0,
    size: Any = None,
    *,
    generator: _C.Generator | None = None,
) -> Tensor:
    """Normal numbers; `mean` and `std` may be tensors.

    Parameters
    ----------
    mean, std : float or Tensor
        Centre and standard deviation; tensors broadcast.
    size : sequence of int, optional
        The shape; needed where both are numbers.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Returns
    -------
    Tensor
        float32.

    Raises
    ------
    TypeError
        If the shape cannot be told.
    """
    if size is None:
        if isinstance(mean, _C.Tensor):
            size = mean.shape
        elif isinstance(std, _C.Tensor):
            size = std.shape
        else:
            raise TypeError("[normal] size: got None, expected one where mean and std are numbers")
    shape = as_shape("normal", (size,))
    if isinstance(mean, _C.Tensor) or isinstance(std, _C.Tensor):
        like: Any = mean if isinstance(mean, _C.Tensor) else std
        plain = _C.normal(shape, 0.0, 1.0, float_code(None), generator, like._device_index)
        return _C.add(_C.mul(plain, std), mean)
    return _C.normal(shape, mean, std, float_code(None), generator)


def bernoulli(input: _C.Tensor, *, generator: _C.Generator | None = None) -> Tensor:
    """Ones with the probabilities in `input`, else zeros.

    Parameters
    ----------
    input : Tensor
        Probabilities, 0 to 1, floating.
    generator : Generator, optional
        The stream drawn from; the default one otherwise.

    Returns
    -------
    Tensor
        Shape and dtype of `input`.
    """
    drawn = _C.uniform(input.shape, 0.0, 1.0, input._dtype, generator, input._device_index)
    return _C.to_dtype(_C.lt(drawn, input), input._dtype)


def multinomial(
    input: _C.Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: _C.Generator | None = None,
) -> Tensor:
    """Indices drawn by weight from each row of `input`.

    Parameters
    ----------
    input : Tensor
        Weights, 0 or more, of shape (C,) or (N, C); they need not sum to 1.
    num_samples : int
        How many to draw per row.
    replacement : bool
        Whether an index may come twice.

    Raises
    ------
    RuntimeError
        If a weight is negative or not finite, a row has no positive one, or more are asked for
        than there are.
    """
    weights = _C.to_dtype(_C.detach(input), dtypes.float64.code)
    if weights.ndim not in (1, 2) or num_samples < 1:
        raise RuntimeError(
            f"[multinomial] got shape {input.shape} and {num_samples} samples, "
            "expected 1 or 2 dimensions and 1 or more samples"
        )
    bad = _C.logical_or(_C.lt(weights, 0), _C.logical_not(_C.isfinite(weights)))
    if bool(_C.any(bad, None, False)):
        raise RuntimeError("[multinomial] weights: got negative, inf or nan, expected 0 or more")
    # Enough positive weights per row: one, or as many as are drawn without replacement.
    needed = 1 if replacement else num_samples
    positive = _C.sum(_C.gt(weights, 0), (-1,), False)
    if bool(_C.any(_C.lt(positive, needed), None, False)):
        raise RuntimeError(
            f"[multinomial] positive weights per row: got fewer than {needed}, "
            "expected at least one (without replacement, one per sample)"
        )
    if replacement and num_samples > 1:
        return _with_replacement(weights, num_samples, generator)
    # The smallest of exponential variables of these rates is i with probability w_i / sum(w),
    # and the k smallest are a draw without replacement.
    at = weights._device_index
    drawn = _C.uniform(weights.shape, 0.0, 1.0, dtypes.float64.code, generator, at)
    race = _C.div(_C.neg(_C.log(_C.sub(1.0, drawn))), weights)
    race = _C.where(_C.gt(weights, 0), race, float("inf"))
    if num_samples == 1:
        return _C.argmin(race, -1, True)
    return _C.slice(_C.sort(race, -1, False)[1], -1, 0, num_samples, 1)


def _with_replacement(weights: Tensor, num_samples: int, generator: _C.Generator | None) -> Tensor:
    # Inverse of the cumulative distribution: how many of its steps lie at or below the draw.
    steps = _C.cumsum(weights, -1)
    total = _C.slice(steps, -1, weights.shape[-1] - 1, weights.shape[-1], 1)
    shape = (*weights.shape[:-1], num_samples)
    at = weights._device_index
    drawn = _C.mul(_C.uniform(shape, 0.0, 1.0, dtypes.float64.code, generator, at), total)
    passed = _C.le(_C.unsqueeze(steps, -2), _C.unsqueeze(drawn, -1))
    # A draw that rounds up to the total would lie one past the end.
    return _C.clamp(_C.sum(passed, (-1,), False), 0, weights.shape[-1] - 1)
