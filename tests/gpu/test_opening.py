# SPDX-License-Identifier: Apache-2.0
"""What is said where a GPU cannot be opened, or is not open; each in a process of its own."""

from __future__ import annotations

import os

import pytest

import vcuda

TELL = """\
import paceline
from paceline import _C
try:
    {call}
except Exception as e:
    print(type(e).__name__, e)
"""


def told(call: str, **variables: str) -> str:
    env = {name: v for name, v in os.environ.items() if not name.startswith("PACELINE_CU")}
    return vcuda.run(TELL.format(call=call), env={**env, **variables})


@pytest.mark.parametrize(
    ("library", "words"),
    [("/nowhere/_cuda.so", "/nowhere/_cuda.so"), ("libm.so.6", "without an entry")],
)
def test_a_library_that_is_none(library: str, words: str) -> None:
    for call in ("_C.cuda_open(None, 0)", "_C.cuda_device_count(None)"):
        said = told(call, PACELINE_CUDA_LIBRARY=library)
        assert said.startswith("DeviceError [cuda]")
        assert words in said


@pytest.mark.parametrize(
    "call",
    ["_C.empty((2,), 6, 0)", "_C.to_device(paceline.ones(2), 0, False)",
     "_C.pin_memory(paceline.ones(2))", "_C.cuda_memory(False)", "_C.cuda_trim()",
     "_C.cuda_synchronize()"],
)  # fmt: skip
def test_what_needs_an_open_gpu_says_so(call: str) -> None:
    said = told(call)
    assert said.startswith("DeviceError")
    assert "open in this process" in said


def test_an_index_that_is_none() -> None:
    said = told("_C.empty((2,), 6, -2)")
    assert said.startswith("ValueError device index: got -2, expected -1 (the CPU)")


def test_a_gpu_that_is_not_there() -> None:
    said = told("_C.cuda_open(None, 2)", **vcuda.variables(devices=2))
    assert "no such GPU: got cuda:2, expected an index below 2" in said


FORKED = """\
import os
from paceline import _C
_C.cuda_open(None, 0)
x = _C.full((3,), 1.0, 6, 0)
child = os.fork()
if child == 0:
    try:
        _C.add(x, 1.0).tolist()
    except Exception as e:
        print(type(e).__name__, e, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(x.tolist())
"""


def test_a_forked_child_is_told_instead_of_hanging() -> None:
    first, second = vcuda.run(FORKED).splitlines()
    assert first.startswith("DeviceError")
    assert "forked" in first
    assert second == "[1.0, 1.0, 1.0]"
