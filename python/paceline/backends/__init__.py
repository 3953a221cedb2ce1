# SPDX-License-Identifier: Apache-2.0
"""Settings of what computes, with PyTorch's names: ``paceline.backends.cuda``."""

from __future__ import annotations

from paceline.backends import cuda

__all__ = ["cuda"]
