# SPDX-License-Identifier: Apache-2.0
"""``cuda.amp``: mixed precision by its older names, with PyTorch's defaults of that time."""

from __future__ import annotations

from paceline import amp, dtypes
from paceline.cuda import is_available

__all__ = ["GradScaler", "autocast"]


class autocast(amp.autocast):  # noqa: N801 (PyTorch's name)
    """``paceline.autocast("cuda", ...)``, in float16 by default.

    Parameters
    ----------
    enabled : bool
        False computes as outside, on any machine.
    dtype : dtype
        float16 or bfloat16.
    cache_enabled : bool
        Accepted.

    Raises
    ------
    DeviceError
        Where it is enabled and there is no GPU.
    """

    def __init__(
        self,
        enabled: bool = True,
        dtype: dtypes.dtype = dtypes.float16,
        cache_enabled: bool = True,
    ) -> None:
        super().__init__("cuda" if enabled or is_available() else "cpu", dtype, enabled)


class GradScaler(amp.GradScaler):
    """``paceline.amp.GradScaler("cuda", ...)``."""

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        super().__init__(
            "cuda", init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )
