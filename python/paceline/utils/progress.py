# SPDX-License-Identifier: Apache-2.0
"""A progress bar that only one process per machine shows."""

from __future__ import annotations

from typing import Any

from ..state import PartialState

__all__ = ["tqdm"]


def tqdm(*args: Any, main_process_only: bool = True, **kwargs: Any) -> Any:
    """Make a ``tqdm`` progress bar, shown on the first process of each machine only.

    Parameters
    ----------
    *args, **kwargs
        As for ``tqdm.auto.tqdm``.
    main_process_only : bool
        False shows one bar per process.

    Raises
    ------
    ImportError
        When tqdm is not installed.
    ValueError
        When the first argument is True or False: in old versions of Accelerate this was
        ``main_process_only``.
    """
    if args and isinstance(args[0], bool):
        raise ValueError(
            f"[tqdm] the first argument is what to iterate over: got {args[0]}; "
            "give main_process_only by name"
        )
    try:
        from tqdm import auto
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install tqdm") from error
    if main_process_only and not kwargs.get("disable"):
        kwargs["disable"] = PartialState().local_process_index != 0
    return auto.tqdm(*args, **kwargs)
