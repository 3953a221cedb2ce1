# SPDX-License-Identifier: Apache-2.0
"""Finding a batch size that fits into memory: one that fits on every process.

A process that runs out of memory leaves its process group, with that as the reason. So a peer that
waits for it in a collective gets an error at once, and one that has come to the end of its function
meets the same error there. All of them then form the group anew and try a smaller batch together.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from ..errors import RemoteError
from ..state import PartialState

__all__ = ["find_executable_batch_size", "should_reduce_batch_size"]

F = TypeVar("F", bound=Callable[..., Any])

# Texts by which libraries say that there is no memory.
_OUT_OF_MEMORY = (
    " out of memory.",
    "out of memory",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",
    "DefaultCPUAllocator: can't allocate memory",
)
#: What a process gives its peers as the reason; they know it again by this name.
_REASON = "OutOfMemory in find_executable_batch_size"


def should_reduce_batch_size(exception: BaseException) -> bool:
    """Tell whether an exception means that there was not enough memory.

    Parameters
    ----------
    exception : BaseException
        What was raised: a ``MemoryError``, or a ``RuntimeError`` in the words of PyTorch, CUDA
        or cuDNN.
    """
    if isinstance(exception, MemoryError):
        return True
    if isinstance(exception, RuntimeError) and len(exception.args) == 1:
        return any(text in str(exception.args[0]) for text in _OUT_OF_MEMORY)
    return False


@overload
def find_executable_batch_size(
    function: F,
    starting_batch_size: int = ...,
    reduce_batch_size_fn: Callable[[], int] | None = ...,
) -> Callable[..., Any]: ...
@overload
def find_executable_batch_size(
    function: None = ...,
    starting_batch_size: int = ...,
    reduce_batch_size_fn: Callable[[], int] | None = ...,
) -> Callable[[F], Callable[..., Any]]: ...
def find_executable_batch_size(
    function: Callable[..., Any] | None = None,
    starting_batch_size: int = 128,
    reduce_batch_size_fn: Callable[[], int] | None = None,
) -> Callable[..., Any]:
    """Run a function with smaller and smaller batches until it fits into memory, on all processes.

    The function gets the batch size as its first argument. Where a process runs out of memory, each
    process runs the function again from its start with a batch of nine tenths; those that were
    waiting for that process leave their collective with an error, which is caught here. So the
    function must make everything anew that has to do with the other processes: call
    ``accelerator.free_memory()`` at its start, and ``prepare`` in it. All processes call it.

    Parameters
    ----------
    function : callable
        What to run.
    starting_batch_size : int
        The first size.
    reduce_batch_size_fn : callable, optional
        Gives the next size; by default nine tenths of the last, rounded down.

    Returns
    -------
    callable
        Takes the other arguments, and gives what the function gave.

    Raises
    ------
    RuntimeError
        When the batch size has come to zero.
    TypeError
        When the batch size is passed in the call.

    Examples
    --------
    >>> @find_executable_batch_size(starting_batch_size=128)
    ... def train(batch_size):
    ...     if batch_size > 100:
    ...         raise MemoryError
    ...     return batch_size
    >>> train()
    92
    """
    if function is None:
        return functools.partial(
            find_executable_batch_size,
            starting_batch_size=starting_batch_size,
            reduce_batch_size_fn=reduce_batch_size_fn,
        )
    size = starting_batch_size

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal size
        _refuse_batch_size(function, args)
        while True:
            if size == 0:
                raise RuntimeError("No executable batch size found, reached zero.")
            gc.collect()
            fitted, result = _attempt(function, size, args, kwargs)
            if fitted:
                return result
            size = int(size * 0.9) if reduce_batch_size_fn is None else reduce_batch_size_fn()

    return run


def _refuse_batch_size(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    params = list(inspect.signature(function).parameters)
    if len(params) >= len(args) + 1:
        return
    shown = ", ".join(f"{n}={v}" for n, v in zip(params[1:], args[1:], strict=False))
    name = getattr(function, "__name__", "function")
    raise TypeError(
        f"Batch size was passed into `{name}` as the first argument when called."
        f"Remove this as the decorator already does so: `{name}({shown})`"
    )


def _attempt(
    function: Callable[..., Any], size: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, Any]:
    """Run once; tell whether it fitted on all processes."""
    try:
        result = function(size, *args, **kwargs)
        _everyone_fits()
    except Exception as error:
        peer = isinstance(error, RemoteError) and _REASON in str(error)
        if not peer and not should_reduce_batch_size(error):
            raise
        # The traceback holds the function's variables, and so its memory.
        error.__traceback__ = None
    else:
        return True, result
    _begin_again(size)
    return False, None


def _everyone_fits() -> None:
    """Wait for the others, which may still run out of memory; then this raises RemoteError."""
    if PartialState.is_initialized():
        PartialState().wait_for_everyone()


def _begin_again(size: int) -> None:
    """Leave every group, so that nobody waits for this process, and form the default one anew."""
    if not PartialState.is_initialized() or PartialState().group is None:
        return
    from .. import distributed

    state = PartialState()
    assert state.group is not None
    state.group.native.announce_failed(f"MemoryError: {_REASON}: a batch of {size} does not fit")
    distributed.destroy_process_group()
    if state._timeout is None:
        distributed.init_process_group()
    else:
        distributed.init_process_group(timeout=state._timeout)
    state.group = distributed.default_group()
