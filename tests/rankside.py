# SPDX-License-Identifier: Apache-2.0
"""What a script under ``harness.run_ranks`` uses to talk to the test that started it.

Lines on stdout: ``MARK <monotonic> <name>``, ``EXC <monotonic> <json>``, ``OUT <json>``. The
monotonic clock is the machine's, so times of several processes can be compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
ARGS: dict[str, Any] = json.loads(os.environ.get("PACELINE_TEST_ARGS", "{}"))

_FIELDS = (
    "dead_ranks",
    "joined_ranks",
    "missing_ranks",
    "op",
    "seq",
    "call_site",
    "rank",
    "remote_type",
    "remote_message",
)


def mark(name: str) -> None:
    """Tell the test that this rank has come so far."""
    print(f"MARK {time.monotonic():.6f} {name}", flush=True)


def out(value: Any) -> None:
    """Hand a JSON value to the test."""
    print("OUT " + json.dumps(value), flush=True)


def report(error: BaseException) -> None:
    """Hand an exception with its attributes to the test, with the time of its arrival."""
    now = time.monotonic()
    fields = {name: getattr(error, name) for name in _FIELDS if hasattr(error, name)}
    kinds = [kind.__name__ for kind in type(error).__mro__]
    notes = list(getattr(error, "__notes__", ()))
    line = {"type": kinds[0], "kinds": kinds, "text": str(error), "notes": notes, **fields}
    print(f"EXC {now:.6f} {json.dumps(line)}", flush=True)


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """The block must raise: reports what, and then ends the script with code 0."""
    try:
        yield
    except BaseException as error:
        report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: how a survivor leaves is not what these tests are about.
        os._exit(0)
    print("nothing was raised", file=sys.stderr)
    os._exit(41)
