# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, which are not built: scripts that record one are told so where they begin."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["CUDAGraph", "graph", "is_current_stream_capturing", "make_graphed_callables"]


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(
        f"[cuda.{name}] CUDA graphs are not built: run the code that would be recorded as it is"
    )


class CUDAGraph:
    """A recorded sequence of work on a GPU: not built.

    Raises
    ------
    NotImplementedError
        Always.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        _refuse("CUDAGraph")


class graph:  # noqa: N801 (PyTorch's name)
    """Record what is done inside of ``with``: not built.

    Raises
    ------
    NotImplementedError
        Always.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        _refuse("graph")


def make_graphed_callables(*args: object, **kwargs: object) -> NoReturn:
    """Record the passes of modules: not built.

    Raises
    ------
    NotImplementedError
        Always.
    """
    _refuse("make_graphed_callables")


def is_current_stream_capturing() -> bool:
    """Whether work is being recorded instead of done: it never is."""
    return False
