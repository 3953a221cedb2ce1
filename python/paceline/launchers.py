# SPDX-License-Identifier: Apache-2.0
"""``notebook_launcher``: run a function on several processes from a notebook or a script.

The processes are fresh interpreters and the function goes to them by value, so it does not matter
what the notebook has done before, and a call at module level needs no guard. Importing this module
loads the standard library only.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .commands.function_job import FunctionJob, RankTraceback, raise_root, traceback_of
from .commands.job import PRECISIONS, Settings, choose_port
from .utils.environment import patch_environment

__all__ = ["RankTraceback", "debug_launcher", "notebook_launcher"]


class _NotSaid(str):
    """A default value that can be told from the same text given by the caller."""


def notebook_launcher(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    num_processes: int | None = None,
    mixed_precision: str = _NotSaid("no"),  # noqa: B008
    use_port: str | int = "29500",
    master_addr: str = "127.0.0.1",
    node_rank: int = 0,
    num_nodes: int = 1,
    rdzv_backend: str = "static",
    rdzv_endpoint: str = "",
    rdzv_conf: Mapping[str, Any] | None = None,
    rdzv_id: str = "none",
    max_restarts: int = 0,
    monitor_interval: float = 0.1,
    log_line_prefix_template: str | None = None,
) -> Any:
    """Run a training function on several processes that train one model.

    Works after an ``Accelerator`` was made in the notebook, and again and again. What the
    processes print appears in the cell. With one process the function simply runs here.

    Parameters
    ----------
    function : callable
        Called in each process as ``function(*args)``.
    args : sequence
        Its arguments; sent by value, as is everything that the notebook defines and it uses.
    num_processes : int, optional
        How many processes; by default one for each GPU.
    mixed_precision : str
        ``"no"``, ``"fp16"`` or ``"bf16"``, for an ``Accelerator`` that says nothing else.
    use_port : str or int
        MASTER_PORT for the processes; 0, or one that is in use, means any.
    master_addr : str
        MASTER_ADDR for the processes: an address of this machine.
    node_rank, num_nodes : int
        0 and 1: several machines come in a later version.
    rdzv_backend, rdzv_endpoint, rdzv_conf, rdzv_id, monitor_interval, log_line_prefix_template
        Accepted for compatibility with Accelerate; there is nothing to set.
    max_restarts : int
        0: restarts come in a later version.

    Returns
    -------
    object
        What the function returned in rank 0; None with a warning if that cannot be sent.

    Raises
    ------
    TypeError
        Something that the function uses cannot be sent to another process; the text names it.
    ValueError
        An argument is wrong.
    RuntimeError
        A process was killed or left without an exception.
    Exception
        What the first process to fail raised, with its traceback as the cause.

    Examples
    --------
    >>> notebook_launcher(max, args=(1, 2), num_processes=1)
    2
    """
    count, port = _checked(function, args, num_processes, use_port)
    _check_one_machine(node_rank, num_nodes, max_restarts)
    precision = _precision(mixed_precision)
    if count == 1:
        with patch_environment(ACCELERATE_MIXED_PRECISION=precision):
            return function(*args)
    _refuse_inside_job()
    said = not isinstance(mixed_precision, _NotSaid)
    sources = {"ACCELERATE_MIXED_PRECISION": "argument of notebook_launcher"} if said else {}
    settings = Settings(
        num_processes=count, mixed_precision=precision, port=choose_port(port), sources=sources
    )
    extra = {"MASTER_ADDR": str(master_addr)}
    return _launch(function, tuple(args), settings, extra)


def debug_launcher(
    function: Callable[..., Any], args: Sequence[Any] = (), num_processes: int = 2
) -> Any:
    """Run a function on several processes on the CPU, on a port of its own, for a test.

    Parameters
    ----------
    function : callable
        Called in each process as ``function(*args)``.
    args : sequence
        Its arguments.
    num_processes : int
        How many processes.

    Returns
    -------
    object
        What the function returned in rank 0.
    """
    with patch_environment(ACCELERATE_USE_CPU="true"):
        return notebook_launcher(function, args, num_processes, "no", 0)


# --- arguments ------------------------------------------------------------------------------------


def _wrong(what: str, got: object, expected: str) -> ValueError:
    return ValueError(f"[notebook_launcher] {what} is wrong: got {got!r}, expected {expected}")


def _checked(
    function: object, args: object, num_processes: object, use_port: object
) -> tuple[int, int]:
    """Check what everybody sets; give the number of processes and the port."""
    if not callable(function):
        raise TypeError(
            f"[notebook_launcher] function is wrong: got {function!r}, expected a function"
        )
    if not isinstance(args, Sequence) or isinstance(args, (str, bytes)):
        raise TypeError(
            f"[notebook_launcher] args is wrong: got {args!r}, expected a tuple such as (value,)"
        )
    if num_processes is None:
        from .commands.devices import count_gpus

        num_processes, missing = count_gpus(os.environ)
        if not num_processes:
            raise ValueError(
                "[notebook_launcher] num_processes is missing: add num_processes=... to the call "
                f"(the default is one for each GPU, but {missing})"
            )
    if isinstance(num_processes, bool) or not isinstance(num_processes, int) or num_processes < 1:
        raise _wrong("num_processes", num_processes, "an integer of at least 1")
    try:
        port = int(use_port) if isinstance(use_port, (str, int)) else -1
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise _wrong("use_port", use_port, "a port from 0 to 65535")
    return num_processes, port


def _check_one_machine(node_rank: object, num_nodes: object, max_restarts: object) -> None:
    if num_nodes != 1:
        raise _wrong("num_nodes", num_nodes, "1: several machines come in a later version")
    if node_rank != 0:
        raise _wrong("node_rank", node_rank, "0, less than num_nodes=1")
    if max_restarts != 0:
        raise _wrong("max_restarts", max_restarts, "0: restarts come in a later version")


def _precision(said: str) -> str:
    """Give the precision: the argument, else the environment, else ``"no"``."""
    value = said
    if isinstance(said, _NotSaid):
        value = os.environ.get("ACCELERATE_MIXED_PRECISION") or str(said)
    if not isinstance(value, str) or value.lower() not in PRECISIONS:
        raise _wrong("mixed_precision", value, f"one of {', '.join(PRECISIONS)}")
    return value.lower()


def _refuse_inside_job() -> None:
    if os.environ.get("PACELINE_RUN_ID") and os.environ.get("WORLD_SIZE", "1") != "1":
        raise RuntimeError(
            "[notebook_launcher] called inside a process of a job (rank "
            f"{os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}): call the function itself, "
            "or start the script with plain `python`"
        )


# --- running --------------------------------------------------------------------------------------


def _launch(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    settings: Settings,
    extra: Mapping[str, str],
) -> Any:
    outcome, answers = FunctionJob(function, args, settings, extra).run()
    if outcome.signal:
        raise KeyboardInterrupt from traceback_of(outcome)
    if outcome.root is not None:
        raise_root("notebook_launcher", outcome, answers)
    return _value(answers[0])


def _value(answer: bytes) -> Any:
    """Give what rank 0 returned."""
    if answer[:1] == b"V":
        return pickle.loads(answer[1:])
    if answer[:1] == b"U":
        warnings.warn(
            "[notebook_launcher] the value that the function returned in rank 0 cannot be sent "
            f"here, so the result is None: {answer[1:].decode(errors='replace')}",
            stacklevel=4,
        )
    return None
