# SPDX-License-Identifier: Apache-2.0
"""Torch models trained by us, beside DDP on Gloo on two ranks and plain PyTorch on one."""

from __future__ import annotations

import importlib.util

import pytest

from harness import run_ranks

pytest.importorskip("torch")


def equal_to_ddp() -> None:
    from bridge import nets
    from paceline import Accelerator
    from rankside import ARGS, RANK, WORLD

    accelerator = Accelerator()
    if WORLD > 1:
        nets.start_gloo()
    for kind in ARGS["kinds"]:
        steps = nets.steps_of(kind, RANK)
        for set_to_none in (True, False):
            expected = nets.reference(kind, steps, set_to_none=set_to_none)
            actual = nets.ours(accelerator, kind, steps, set_to_none=set_to_none)
            wrong = nets.differences(actual, expected)
            assert not wrong, f"{kind}, set_to_none={set_to_none}: {wrong} differ"


@pytest.mark.parametrize("world", [1, 2])
def test_fp32_has_the_bits_of_ddp(world: int) -> None:
    run_ranks(
        world, equal_to_ddp, args={"kinds": ["mlp", "cnn", "gpt"]}, timeout=100, with_torch=True
    )


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize("world", [1, 2])
def test_transformers_models_have_the_bits_of_ddp(world: int) -> None:
    run_ranks(world, equal_to_ddp, args={"kinds": ["qwen3", "bert"]}, timeout=110, with_torch=True)
