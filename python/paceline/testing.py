# SPDX-License-Identifier: Apache-2.0
"""For test suites: run a test's body on several ranks.

Each call starts fresh interpreters and ends them, so that tests neither share state nor leave any,
and may run side by side (pytest-xdist).
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any

from .commands.function_job import FunctionJob, RankTraceback, raise_root, traceback_of
from .commands.job import Settings, choose_port

__all__ = ["RankTraceback", "run_ranks"]


def run_ranks(
    function: Callable[..., Any],
    n: int = 2,
    timeout: float = 60.0,
    args: Sequence[Any] = (),
    mixed_precision: str = "no",
) -> list[Any]:
    """Run a function on ``n`` ranks that form one job.

    What the ranks print appears in this process's output, so that pytest shows it where the test
    fails.

    Parameters
    ----------
    function : callable
        Called in each rank as ``function(*args)``; may be defined inside a test. It goes there by
        value, with everything of its module that it uses.
    n : int
        How many ranks.
    timeout : float
        Seconds for the whole. Then every rank shows where it is, and all end.
    args : sequence
        The function's arguments.
    mixed_precision : {"no", "fp16", "bf16"}
        For an ``Accelerator`` that says nothing else.

    Returns
    -------
    list
        What the function returned on each rank, in order of rank.

    Raises
    ------
    Exception
        What the first rank to fail raised, an ``AssertionError`` with its text among them; that
        rank's traceback is its cause.
    TimeoutError
        The time was up; the text has the stack of each rank.
    TypeError
        Something that the function uses, or returns, cannot be sent to another process.
    ValueError
        ``n`` or ``timeout`` is wrong.
    RuntimeError
        A rank was killed, or left without an exception.

    Examples
    --------
    >>> from paceline import PartialState
    >>> run_ranks(lambda: PartialState().process_index, 2)
    [0, 1]
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"[run_ranks] n: got {n!r}, expected an integer of at least 1")
    if not timeout > 0:
        raise ValueError(f"[run_ranks] timeout: got {timeout!r}, expected seconds above 0")
    settings = Settings(num_processes=n, mixed_precision=mixed_precision, port=choose_port(0))
    job = FunctionJob(
        function,
        tuple(args),
        settings,
        caller="run_ranks",
        by_value=True,
        all_results=True,
        timeout_s=float(timeout),
    )
    outcome, answers = job.run()
    if outcome.signal == signal.SIGABRT:
        stacks = "\n".join(
            f"rank {ending.rank}:\n{ending.text.decode(errors='replace').strip()}"
            for ending in outcome.endings
        )
        raise TimeoutError(f"[run_ranks] not done after {timeout:g} s\n{stacks}")
    if outcome.signal:
        raise KeyboardInterrupt from traceback_of(outcome)
    if outcome.root is not None:
        raise_root("run_ranks", outcome, answers)
    return [_value(rank, answer) for rank, answer in enumerate(answers)]


def _value(rank: int, answer: bytes) -> Any:
    if answer[:1] == b"V":
        return pickle.loads(answer[1:])
    told = answer[1:].decode(errors="replace")
    raise TypeError(f"[run_ranks] what rank {rank} returned cannot be sent here: {told}")
