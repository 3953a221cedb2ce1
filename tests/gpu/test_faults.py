# SPDX-License-Identifier: Apache-2.0
"""A GPU that fails, a forked child, no memory, no such GPU: one sentence each."""

from __future__ import annotations

import pytest

import vcuda

LOST = """
import ctypes, os
import paceline

x = paceline.ones(4, 4).to("cuda").requires_grad_()
loss = (x * 2).sum()
gpu = ctypes.CDLL(os.environ["PACELINE_CUDA_LIBRARY"])
gpu.vcuda_fail(b"on purpose")
seen = set()
calls = [
    lambda: x + 1, lambda: x @ x, lambda: x.cpu(), lambda: x.tolist(), loss.backward,
    lambda: paceline.ones(3).to("cuda"), lambda: paceline.zeros(5, device="cuda"),
    paceline.cuda.synchronize, loss.item,
]
for call in calls:
    try:
        call()
        print("no error")
    except paceline.errors.DeviceError as e:
        seen.add(str(e))
print(len(seen), *seen, sep="\\n")
print((paceline.ones(2) + 1).tolist())
del x, loss
"""


def test_a_gpu_that_failed_says_the_same_everywhere_and_the_cpu_goes_on() -> None:
    lines = vcuda.run(LOST).splitlines()
    assert lines[0] == "1", lines
    assert "the GPU failed and this process cannot use it any more" in lines[1]
    assert '"unspecified launch failure"' in lines[1]
    assert "CUDA_LAUNCH_BLOCKING=1" in lines[1]
    assert lines[2:] == ["[2.0, 2.0]"]


FORKED = """
import os
import paceline

x = paceline.ones(3).to("cuda")
child = os.fork()
if child == 0:
    for call in (lambda: x + 1, x.cpu, lambda: paceline.ones(2).to("cuda")):
        try:
            call()
        except paceline.errors.DeviceError as e:
            print("fork" in str(e) and "CUDA" in str(e), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], (x + 1).tolist())
"""


def test_a_forked_child_is_told() -> None:
    assert vcuda.run(FORKED).splitlines() == ["True", "True", "True", "0 [2.0, 2.0, 2.0]"]


FULL = """
import paceline

kept = [paceline.zeros(1 << 18, device="cuda") for _ in range(3)]
try:
    more = paceline.zeros(1 << 18, device="cuda")
except MemoryError as e:
    print(e)
del kept
print(paceline.zeros(1 << 18, device="cuda").sum().item())
"""


def test_memory_that_is_full_and_then_is_not() -> None:
    said, after = vcuda.run(FULL, env=vcuda.environment(memory=7 << 19)).splitlines()
    assert "out of device memory" in said
    assert "smaller batch" in said
    assert after == "0.0"


ABSENT = """
import paceline

print(paceline.cuda.device_count())
for name in ("cuda:2", "cuda:1", "cuda:0"):
    try:
        print(paceline.ones(2).to(name).device)
    except paceline.errors.DeviceError as e:
        print(e)
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_a_gpu_that_is_not_there_and_a_second_one(devices: int) -> None:
    lines = vcuda.run(ABSENT, env=vcuda.environment(devices=devices)).splitlines()
    assert lines[0] == str(devices)
    assert f"got cuda:2, expected an index below {devices}" in lines[1]
    if devices == 1:
        assert "got cuda:1, expected an index below 1" in lines[2]
        assert lines[3] == "cuda:0"
    else:
        assert lines[2] == "cuda:1"
        assert "one GPU per process: got cuda:0, expected cuda:1" in lines[3]
