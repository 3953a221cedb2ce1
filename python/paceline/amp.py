# SPDX-License-Identifier: Apache-2.0
"""Mixed precision as a context: matrix products and attention in a shorter dtype.

What is cast, and when, is decided in C (``csrc/amp``); here is only the switch. fp16 needs its
losses scaled: ``GradScaler``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from paceline import _C, _device, cuda, dtypes
from paceline.dtypes import dtype as DType  # noqa: N812
from paceline.training.grad_scaler import GradScaler

__all__ = ["GradScaler", "autocast"]

F = TypeVar("F", bound=Callable[..., Any])
_OFF = -1


@functools.cache
def _warn_if_not_faster() -> None:
    """Say once where bf16 saves memory only: without its instructions it is emulated."""
    info = _C.cpu_info()
    if not (info["avx512_bf16"] or info["amx_bf16"]):
        warnings.warn(
            f"[autocast] this processor ({info['name']}) has no bfloat16 arithmetic: results are "
            "right, but it will not be faster than float32",
            stacklevel=3,
        )


class autocast:  # noqa: N801 (PyTorch's name)
    """Compute what gains from it in a shorter dtype, until the end of the block.

    Parameters
    ----------
    device_type : str
        ``"cpu"`` or ``"cuda"``: accepted, operators run where their tensors are.
    dtype : dtype, optional
        bfloat16, which is also the default, or float16. Sums of products are kept in fp32 in
        both. fp16 has no instructions of its own on most processors, and is then no faster than
        fp32.
    enabled : bool
        False switches it off inside an outer block.
    cache_enabled : bool, optional
        Accepted; weights are cast once and not at every use in any case.

    Raises
    ------
    ValueError
        For another dtype.
    DeviceError
        For ``"cuda"`` where there is no GPU.

    Examples
    --------
    >>> import paceline
    >>> a = paceline.ones(2, 2)
    >>> with paceline.autocast("cpu", paceline.bfloat16):
    ...     (a @ a).dtype
    paceline.bfloat16
    """

    def __init__(
        self,
        device_type: str,
        dtype: DType | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        on_cpu = _device.device(device_type).type == "cpu"
        if not on_cpu and not (cuda.is_initialized() or cuda.is_available()):
            raise _device.no_gpu("autocast", device_type)
        chosen = dtypes.bfloat16 if dtype is None else dtype
        if enabled and chosen not in (dtypes.bfloat16, dtypes.float16):
            raise ValueError(
                f"[autocast] dtype: got {chosen!r}, expected paceline.bfloat16 or paceline.float16"
            )
        if enabled and on_cpu and chosen is dtypes.bfloat16:
            _warn_if_not_faster()
        self._code = chosen.code if enabled else _OFF
        self._before: list[int] = []

    def __enter__(self) -> autocast:
        self._before.append(_C.set_autocast(self._code))
        return self

    def __exit__(self, *_: object) -> None:
        _C.set_autocast(self._before.pop())

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]
