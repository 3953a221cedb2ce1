# SPDX-License-Identifier: Apache-2.0
"""Functions of ``accelerate.utils`` that act in the default state."""

from __future__ import annotations

from typing import Any

from ..engines import default_engine
from ..state import PartialState

__all__ = ["extract_model_from_parallel", "save", "wait_for_everyone"]


def wait_for_everyone() -> None:
    """Wait until every process has come here."""
    PartialState().wait_for_everyone()


def save(
    obj: Any, f: Any, save_on_each_node: bool = False, safe_serialization: bool = False
) -> None:
    """Save an object with ``paceline.save`` on the main process (of each machine, if asked)."""
    state = PartialState()
    if state.is_local_main_process if save_on_each_node else state.is_main_process:
        default_engine().save(obj, f)


def extract_model_from_parallel(
    model: Any, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
) -> Any:
    """Give the model itself: ``prepare`` does not wrap it."""
    if not keep_fp32_wrapper:
        from ..model import unwrap_forward

        unwrap_forward(model)
    return model
