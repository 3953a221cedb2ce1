# SPDX-License-Identifier: Apache-2.0
"""Tells the launcher what ended this rank, before its peers fail because of it.

The launcher shows one failure, the first; PACELINE_ERROR_FILE is where it reads whose that was.
One JSON object: ``type`` (class name), ``message``, ``time_ns`` (monotonic clock).
"""

from __future__ import annotations

import json
import os
import time

_MESSAGE_MAX = 8192


def write_error_file(kind: str, message: str) -> None:
    """Write the report, if the launcher asked for one; the first one stays.

    Parameters
    ----------
    kind : str
        Class name of the exception.
    message : str
        Its text.
    """
    path = os.environ.get("PACELINE_ERROR_FILE")
    if not path:
        return
    report = {"type": kind, "message": message[:_MESSAGE_MAX], "time_ns": time.monotonic_ns()}
    try:
        with open(path, "r+b", buffering=0) as file:  # "r+": never create one, never truncate
            if not file.read(1):
                file.write(json.dumps(report).encode())
    except OSError:
        pass  # the launcher has gone, or is one that does not read it
