# SPDX-License-Identifier: Apache-2.0
"""Events that keep streams apart: with one wait of the reducer left out, training goes wrong.

That the tests of training on several virtual GPUs pass says something only if they would fail
without the waits that csrc/comm/device.c puts between the compute stream and its own.
"""

from __future__ import annotations

import pytest

import vcuda
from distributed.test_device_training import BODY
from harness import Result, run_ranks

ARGS = {"cpu": False, "accumulate": 1, "steps": 7, "bucket_mb": 0.01}


def train(seed: int, dropped: int) -> list[Result]:
    env = vcuda.variables(worker=True, devices=2, seed=seed)
    env["PACELINE_VCUDA_DROPPED_WAITS"] = str(dropped)
    return run_ranks(2, BODY, env=env, args=ARGS, timeout=90)


def losses(results: list[Result]) -> str:
    return str([result.outs for result in results])


def seen(seed: int, dropped: int, right: str) -> bool:
    try:
        return losses(train(seed, dropped)) != right
    except AssertionError:  # a rank ended by an error
        return True


@pytest.mark.parametrize("dropped", [1, 2], ids=["before-the-reduction", "after-it"])
def test_a_wait_left_out_is_seen(dropped: int) -> None:
    right = losses(train(0, 0))
    assert any(seen(seed, dropped, right) for seed in range(8))
