# SPDX-License-Identifier: Apache-2.0
"""How exactly float32 matrices are multiplied on the GPU, with PyTorch's names."""

from __future__ import annotations

from paceline import _C

__all__ = ["get_float32_matmul_precision", "set_float32_matmul_precision"]

_PRECISIONS = ("highest", "high", "medium")
_precision = "highest"


def get_float32_matmul_precision() -> str:
    """Give the precision of float32 matrix products, ``"highest"`` if it was never set.

    Returns
    -------
    str
        ``"highest"``, ``"high"`` or ``"medium"``.
    """
    return _precision


def set_float32_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products from now on, in this process.

    Results are float32 in any case; only how the factors are read differs.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        ``"highest"``, the default: float32. ``"high"``: the GPU may use TF32, with 10 bits of
        fraction instead of 23. ``"medium"``: the same here; PyTorch may then use bfloat16. The
        CPU computes in float32 whatever is set, where PyTorch's may use bfloat16 at ``"medium"``
        on processors that have it.

    Raises
    ------
    ValueError
        If `precision` is none of the three (PyTorch warns and changes nothing).

    Examples
    --------
    >>> import paceline
    >>> paceline.set_float32_matmul_precision("high")
    >>> paceline.backends.cuda.matmul.allow_tf32
    True
    >>> paceline.set_float32_matmul_precision("highest")
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(
            f"[set_float32_matmul_precision] got {precision!r}, expected 'highest', 'high' or "
            "'medium'"
        )
    _C.cuda_allow_tf32(precision != "highest")
    _precision = precision
