# SPDX-License-Identifier: Apache-2.0
"""An old name of ``paceline.utils.memory``, from which scripts still import."""

from __future__ import annotations

from .utils.memory import find_executable_batch_size

__all__ = ["find_executable_batch_size"]
