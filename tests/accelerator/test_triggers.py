# SPDX-License-Identifier: Apache-2.0
"""Triggers, LocalSGD, and a batch size that fits on all ranks."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from paceline import Accelerator
from paceline.local_sgd import LocalSGD
from paceline.utils.memory import find_executable_batch_size, should_reduce_batch_size
from ways import run_ways


def _triggers() -> None:
    from paceline import Accelerator
    from rankside import RANK, WORLD

    accelerator = Accelerator()
    assert accelerator.check_trigger() is False
    for who in range(WORLD):
        if who == RANK:
            accelerator.set_trigger()
        assert accelerator.check_trigger() is True
        assert accelerator.check_trigger() is False


@pytest.mark.parametrize("world", [1, 2, 3])
def test_row_2_a_trigger_reaches_all_ranks(world: int) -> None:
    run_ways("native", world, _triggers)


# --- find_executable_batch_size -----------------------------------------------------------------


def test_sizes_shrink_by_a_tenth() -> None:
    sizes = []

    @find_executable_batch_size(starting_batch_size=128)
    def train(batch_size: int, word: str) -> str:
        sizes.append(batch_size)
        if batch_size > 95:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return word

    assert train("done") == "done"
    assert sizes == [128, 115, 103, 92]
    assert train(word="again") == "again"
    assert sizes[4:] == [92], "what was found stays"


def test_a_rule_of_ones_own_and_zero() -> None:
    left = [8, 0]

    @find_executable_batch_size(starting_batch_size=16, reduce_batch_size_fn=lambda: left.pop(0))
    def train(batch_size: int) -> None:
        raise MemoryError

    with pytest.raises(RuntimeError, match="No executable batch size found, reached zero."):
        train()
    assert left == []


def test_other_errors_pass_and_misuse_is_named() -> None:
    @find_executable_batch_size
    def train(batch_size: int, model: str) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train("model")
    message = (
        "Batch size was passed into `train` as the first argument when called."
        r"Remove this as the decorator already does so: `train\(model=m\)`"
    )
    with pytest.raises(TypeError, match=message):
        train(128, "m")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("a", "b"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert should_reduce_batch_size(error) is expected


def _agree() -> None:
    """Rank 1 alone runs out, while the others wait for it inside a backward pass."""
    import time

    from paceline import Accelerator
    from paceline.utils import find_executable_batch_size
    from rankside import ARGS, RANK, WORLD, out
    from ways import torch

    accelerator = Accelerator()
    sizes = []
    started = time.monotonic()

    @find_executable_batch_size(starting_batch_size=16)
    def train(batch_size):  # type: ignore[no-untyped-def]
        sizes.append(batch_size)
        accelerator.free_memory()
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        for i in range(3):
            late = ARGS["when"] == "late" and i == 2
            if RANK == 1 and batch_size > 12 and (late or ARGS["when"] == "early"):
                raise MemoryError("no room")
            loss = model(torch.ones(batch_size, 2)).mean()
            if late and batch_size > 12:
                break  # the others are done, and learn it at the end
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return accelerator.reduce(torch.ones(1)).item() if batch_size <= 12 else 0.0

    assert train() == WORLD
    out([sizes, time.monotonic() - started])


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("world", [2, 3])
def test_row_14_all_ranks_retry_together(way: str, world: int, when: str) -> None:
    ranks = run_ways(way, world, _agree, args={"when": when}, timeout=90)
    assert [rank.outs[0][0] for rank in ranks] == [[16, 14, 12]] * world


def _other_error() -> None:
    from paceline import Accelerator
    from paceline.utils import find_executable_batch_size
    from rankside import RANK, failing

    accelerator = Accelerator()

    @find_executable_batch_size(starting_batch_size=16)
    def train(batch_size):  # type: ignore[no-untyped-def]
        if RANK == 1:
            raise ValueError("not about memory")
        accelerator.wait_for_everyone()

    with failing():
        train()


def test_another_error_of_a_rank_is_no_reason_to_retry() -> None:
    start = time.monotonic()
    ranks = run_ways("native", 2, _other_error)
    assert time.monotonic() - start < 25
    assert ranks[0].exception["type"] in ("RemoteError", "PeerLostError")


# --- LocalSGD -----------------------------------------------------------------------------------


def _local_sgd() -> None:
    from paceline import Accelerator
    from paceline.local_sgd import LocalSGD
    from rankside import RANK, WORLD
    from ways import torch

    accelerator = Accelerator()
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    mean = sum(range(WORLD)) / WORLD
    weights = []
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=2) as local_sgd:
        for _ in range(5):
            accelerator.backward(-model(torch.full((1, 2), float(RANK))).sum())
            optimizer.step()
            optimizer.zero_grad()
            local_sgd.step()
            weights.append(model.weight.detach().tolist()[0])
    expected = [RANK, 2 * mean, 2 * mean + RANK, 4 * mean, 4 * mean + RANK]
    assert weights == [[w, w] for w in expected], weights
    assert model.weight.detach().tolist() == [[5 * mean, 5 * mean]], "averaged at the end"
    accelerator.backward(model(torch.full((1, 2), float(RANK))).sum())
    assert model.weight.grad.tolist() == [[mean, mean]], "outside gradients are reduced again"


def test_local_sgd_averages_every_few_steps(way: str) -> None:
    run_ways(way, 2, _local_sgd, timeout=90)


def test_local_sgd_alone_and_wrong(torch: ModuleType) -> None:
    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    with LocalSGD(accelerator, model, 4) as local_sgd:
        local_sgd.step()
    assert local_sgd.num_steps == 1
    assert not local_sgd.enabled
    with pytest.raises(ValueError, match="local_sgd_steps: got 0, expected at least 1"):
        LocalSGD(accelerator, model, 0)
