# SPDX-License-Identifier: Apache-2.0
"""The engine of PyTorch: the only place that imports torch, when the program itself has.

Adaptation only: buckets, process groups, sharding, accumulation, checkpoints are those of the
native way in. ``engine.py`` says what is what, ``sync.py`` ties torch's backward pass to the
reducer, ``exchange.py`` lends tensors to the core and back, ``loaders.py`` takes loaders apart,
``objects.py`` takes tensors apart for other machines.
"""

from __future__ import annotations

from . import objects
from .engine import ENGINE, TorchEngine

__all__ = ["ENGINE", "TorchEngine", "objects"]
