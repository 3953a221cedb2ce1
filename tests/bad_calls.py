# SPDX-License-Identifier: Apache-2.0
"""Calls on a process group that must raise at once and leave the group whole."""

from __future__ import annotations

from collections.abc import Sequence

from harness import run_ranks

_BODY = """
import numpy as np
import paceline as pl
import paceline.distributed as dist
from rankside import ARGS, RANK, out

dist.init_process_group()
for call in ARGS["calls"]:
    try:
        eval(call)
    except Exception as error:
        out([[kind.__name__ for kind in type(error).__mro__], str(error)])
    else:
        out(None)
dist.barrier()
"""


def check_bad_calls(calls: Sequence[tuple[str, str, str]]) -> None:
    """Make each call on two ranks and compare what it raises.

    Parameters
    ----------
    calls : list of (str, str, str)
        Expression (of ``np``, ``pl``, ``dist``, ``RANK``), class of the error or one of its bases,
        part of the text.
    """
    for result in run_ranks(2, _BODY, args={"calls": [call for call, _, _ in calls]}):
        for (call, kind, text), found in zip(calls, result.outs, strict=True):
            assert found is not None, f"{call} raised nothing"
            assert kind in found[0], f"{call} raised {found}"
            assert text in found[1], f"{call} raised {found}"
