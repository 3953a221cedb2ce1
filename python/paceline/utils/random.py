# SPDX-License-Identifier: Apache-2.0
"""Seeding everything that draws random numbers in this process."""

from __future__ import annotations

import random
import sys

from ..state import PartialState

__all__ = ["set_seed"]


def set_seed(seed: int, device_specific: bool = False, deterministic: bool = False) -> None:
    """Seed Python's ``random``, paceline, and NumPy and PyTorch where they are loaded.

    Parameters
    ----------
    seed : int
        The seed.
    device_specific : bool
        Add the rank, so that every process draws something else.
    deterministic : bool
        Without effect on the CPU: its results never depend on timing.
    """
    if device_specific:
        seed += PartialState().process_index
    from paceline.random import manual_seed

    random.seed(seed)
    manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    # `import paceline as torch` may have put us there under that name.
    if torch is not None and torch.__name__ == "torch":
        torch.manual_seed(seed)
