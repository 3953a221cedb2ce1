# SPDX-License-Identifier: Apache-2.0
"""The ways in over which the tests of ``tests/accelerator`` run: one suite, not a copy for each.

On ranks ``from ways import torch`` gives the tensor library of the way in that the environment
names; ``run_ways`` starts ranks with it. In the test's own process the fixture ``torch`` gives it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from harness import Result, run_ranks

WAYS = ("native", "torch")
_VARIABLE = "WAY_IN"


def library(way: str) -> ModuleType:
    """Give the tensor library of a way in."""
    return importlib.import_module({"native": "paceline", "torch": "torch"}[way])


def run_ways(way: str, n: int, body: Callable[..., object] | str, **options: Any) -> list[Result]:
    """Run a body on n ranks over one way in; options as for ``run_ranks``."""
    env = {**options.pop("env", {}), _VARIABLE: way}
    return run_ranks(n, body, env=env, with_torch=way == "torch", **options)


def __getattr__(name: str) -> Any:
    if name == "torch":
        return library(os.environ.get(_VARIABLE, "native"))
    raise AttributeError(name)
