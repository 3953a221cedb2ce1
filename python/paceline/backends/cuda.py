# SPDX-License-Identifier: Apache-2.0
"""Settings of the GPU's libraries, with PyTorch's names. Setting one touches no driver."""

from __future__ import annotations

from paceline import _cuda_libraries, _precision

__all__ = ["is_built", "matmul"]


class _MatrixProducts:
    """Settings of matrix products on the GPU: ``paceline.backends.cuda.matmul``.

    Attributes
    ----------
    allow_tf32 : bool
        Whether float32 products may be computed by TF32, whose factors have 10 bits of fraction
        instead of 23: several times faster, and less exact. False at first, as in PyTorch. The
        same setting as `paceline.set_float32_matmul_precision`: True is ``"high"``, False
        ``"highest"``. The CPU's products stay exact either way.

    Raises
    ------
    RuntimeError
        If `allow_tf32` is set to what is no bool.

    Examples
    --------
    >>> import paceline
    >>> paceline.backends.cuda.matmul.allow_tf32
    False
    """

    __slots__ = ()

    @property
    def allow_tf32(self) -> bool:
        return _precision.get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allow: bool) -> None:
        if not isinstance(allow, bool):
            raise RuntimeError(f"[allow_tf32] got {allow!r}, expected True or False")
        _precision.set_float32_matmul_precision("high" if allow else "highest")


#: Settings of matrix products.
matmul = _MatrixProducts()


def is_built() -> bool:
    """Tell whether this build has CUDA kernels, whether or not there is a GPU."""
    return _cuda_libraries.has_kernels()
