# SPDX-License-Identifier: Apache-2.0
"""The loop of every worker: a line on stdin is a question, a line of JSON on stdout its answer.

Imports the standard library only: workers of peers run in interpreters that have nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

SLOW_S = 1.0  # a step that takes longer is warmed once
SETTLE_S = 0.15


def serve(answers: dict[str, Callable[..., Any]], ready: Any = True) -> None:
    """Say `ready`, then answer until stdin ends. A question is a name and words after it.

    Whatever else is printed meanwhile goes to stderr.
    """
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        _say(out, {"ok": ready})
        for line in sys.stdin:
            name, *words = line.split()
            try:
                answer = {"ok": answers[name](*words)}
            except Exception as error:
                traceback.print_exc()
                answer = {"failed": f"{type(error).__name__}: {error}"}
            _say(out, answer)
    except BrokenPipeError:
        pass  # nobody asks any more


def _say(out: int, answer: Any) -> None:
    line = (json.dumps(answer) + "\n").encode()
    while line:
        line = line[os.write(out, line) :]


def timed(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of some calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def serve_steps(
    step: Callable[[], Any], compiled: bool = False, **more: Callable[..., Any]
) -> None:
    """Warm a training step, tell its seconds and first loss, then answer ``go N`` with times.

    A step gives its loss. The first call of a `compiled` one says nothing about the next's time.
    """
    losses: list[Any] = []
    last = timed(lambda: losses.append(step()), 1)[-1]
    if compiled:
        last = timed(step, 1)[-1]
    if last < SLOW_S:
        last = timed(step, 3)[-1]
    ready = {"seconds": last, "loss": float(losses.pop())}
    serve({"go": lambda n: timed(step, int(n)), **more}, ready)


def peak_mib() -> list[float]:
    """Peak of this process's resident memory, and what of it is shared between ranks now."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) / 1024 for name in ("VmHWM", "RssShmem")]


def settle(call: Callable[[], Any], latest: Callable[[float], float]) -> None:
    """Make calls on all ranks alike until they have their places on the processors.

    With more ranks than cores it takes the system up to a tenth of a second to spread them evenly;
    a round of a few milliseconds would measure that. `latest` gives the largest number of any rank.
    """
    start = time.monotonic()
    call()
    while latest(time.monotonic() - start) < SETTLE_S:
        for _ in range(5):
            call()
