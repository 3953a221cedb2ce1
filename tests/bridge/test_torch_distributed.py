# SPDX-License-Identifier: Apache-2.0
"""The way of GPU tensors, through ``torch.distributed``, gone by CPU tensors over Gloo.

No GPU is needed: the same code is driven with another backend, beside the core's shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accelerator import test_accumulation, test_join
from bridge import test_gradients, test_parity
from harness import Break, Result, run_ranks

pytest.importorskip("torch")


def run_by_torch(n: int, body: Callable[..., object], **options: Any) -> list[Result]:
    env = {"PACELINE_TORCH_DISTRIBUTED": "1", "WAY_IN": "torch"}
    return run_ranks(n, body, env=env, with_torch=True, **{"timeout": 100, **options})


def test_gradients_are_the_mean_whatever_torch_does() -> None:
    # Compiling takes longer than all the rest, and changes nothing here.
    run_by_torch(2, test_gradients.ordinary_and_odd_passes, args={"compile_first": []})


def test_training_has_the_bits_of_ddp() -> None:
    run_by_torch(2, test_parity.equal_to_ddp, args={"kinds": ["mlp", "cnn", "gpt"]})


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_ran_out_keep_taking_part(world: int) -> None:
    run_by_torch(world, test_join._uneven)


def test_refusals_are_the_same() -> None:
    run_by_torch(2, test_gradients.refusals)


def both_ways() -> None:
    """Everything that moves tensors, by shared memory and by torch: the same bits."""
    import pytest
    import torch

    from paceline import Accelerator
    from paceline.engines.torch import device_group, exchange
    from paceline.utils import broadcast, gather, pad_across_processes, reduce
    from rankside import RANK, WORLD

    accelerator = Accelerator()
    generator = torch.Generator().manual_seed(RANK)
    kinds = ["float32", "float64", "bfloat16", "float16", "complex64", "int64", "int32", "uint8",
             "int8", "bool"]  # fmt: skip

    def make(name):
        values = torch.randint(0, 2 if name == "bool" else 50, (3, 2), generator=generator)
        if name.startswith(("f", "b", "c")):
            values = values + torch.rand(3, 2, generator=generator)
        return values.to(getattr(torch, name))

    def attempt(t, op):
        try:
            return reduce(t, op)
        except TypeError as error:
            return torch.tensor(list(str(error).split("] ")[1].partition(":")[0].encode()))

    def everything(tensors):
        yield from (gather(t) for t in tensors.values())
        yield from (broadcast(t, from_process=WORLD - 1) for t in tensors.values())
        for name, t in tensors.items():
            for op in ("sum", "mean", "max", "min"):
                # More than two fractions have more than one sum.
                if WORLD == 2 or op in ("max", "min") or name[0] not in "bcf":
                    yield attempt(t, op)
        yield gather(pad_across_processes(torch.full((RANK + 1, 2), float(RANK)), pad_index=-1))
        yield gather(torch.tensor(float(RANK)))
        yield gather(torch.empty(0, 3))
        yield broadcast(torch.empty(0))
        yield reduce(torch.full((5, 7), RANK + 0.5).t(), "mean")
        # The last batch of an epoch: only what is real comes back, and one rank has nothing.
        yield accelerator.gather_for_metrics(torch.full((2, 3), RANK))

    found = []
    given = {name: make(name) for name in kinds}
    for by_torch in (False, True):
        exchange.goes_by_torch = lambda device, by_torch=by_torch: by_torch
        copies = {name: t.clone() for name, t in given.items()}
        found.append(list(everything(copies)))
        assert all(torch.equal(t, given[name]) for name, t in copies.items())
    assert len(found[0]) == len(found[1]) > 50
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), i
        assert torch.equal(a, b), (i, a, b)

    group = accelerator.state.partial.group
    link = device_group.device_group(group, torch.device("cpu"))
    assert device_group.device_group(group, torch.device("cpu")) is link
    accelerator.state.partial.destroy_process_group()
    with pytest.raises(RuntimeError, match="the process group was destroyed"):
        link.all_reduce(torch.ones(1), "sum")


@pytest.mark.parametrize("world", [2, 3])
def test_collectives_have_the_bits_of_shared_memory(world: int) -> None:
    run_by_torch(world, both_ways)


def train_both_ways() -> None:
    """Accumulation, no_sync, frozen and unused parameters, saved and taken up: equal bits."""
    import torch
    from torch import nn

    from paceline import Accelerator
    from paceline.engines.torch import device_reducer, exchange, sync
    from rankside import ARGS, RANK

    def step_all(accelerator, model, optimizer, batches):
        for x in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    def train(by_torch):
        for module in (exchange, sync):
            module.goes_by_torch = lambda device: by_torch
        accelerator = Accelerator(gradient_accumulation_steps=2)
        torch.manual_seed(1 + RANK)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
        model[0].spare = nn.Linear(3, 3)  # gets no gradient
        model[3].bias.requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model, optimizer = accelerator.prepare(model, optimizer)
        reducer = model.forward.entry.sync._reducer
        assert isinstance(reducer, device_reducer.DeviceReducer) == by_torch
        generator = torch.Generator().manual_seed(10 + RANK)
        batches = [torch.randn(5, 4, generator=generator) for _ in range(6)]
        step_all(accelerator, model, optimizer, batches[:3])
        folder = f"{ARGS['folder']}/{by_torch}"
        accelerator.save_state(folder)
        step_all(accelerator, model, optimizer, batches[3:])
        after = {k: v.clone() for k, v in model.state_dict().items()}
        accelerator.load_state(folder)
        step_all(accelerator, model, optimizer, batches[3:])
        again = model.state_dict()
        assert all(torch.equal(after[k], again[k]) for k in after)
        assert model[0].spare.weight.grad is None
        accelerator.free_memory()
        return after

    ours, theirs = train(False), train(True)
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_a_run_is_the_same_either_way(tmp_path: Path) -> None:
    run_by_torch(2, train_both_ways, args={"folder": str(tmp_path)})


@pytest.mark.parametrize("body", [test_accumulation._each_batch, test_accumulation._no_sync])
def test_accumulation_is_the_same(body: Callable[[], None]) -> None:
    run_by_torch(2, body)


# --- faults -------------------------------------------------------------------------------------


def different_calls() -> None:
    import pytest
    import torch
    from torch import nn

    from paceline import Accelerator
    from paceline.errors import CollectiveMismatchError
    from rankside import RANK

    accelerator = Accelerator()
    x = torch.ones(2 + RANK)
    for call, words in (
        (accelerator.gather, "rank 1: gather, \\[3\\] float32"),
        (accelerator.reduce, "reduce"),
    ):
        before = x.clone()
        with pytest.raises(CollectiveMismatchError, match=words):
            call(x)
        assert torch.equal(x, before)
    # The ranks are in step: what matches works on.
    assert accelerator.gather(torch.tensor([RANK])).tolist() == [0, 1]
    # Models trained in different orders, which torch would add up crosswise.
    models = [accelerator.prepare(nn.Linear(2, 2)) for _ in range(2)]
    losses = [model(torch.ones(1, 2)).sum() for model in models]
    with pytest.raises(CollectiveMismatchError, match="reduced gradients in different orders"):
        losses[RANK].backward()


def test_calls_that_do_not_match_are_an_error_on_all_ranks() -> None:
    run_by_torch(2, different_calls)


def training_alone() -> None:
    import torch

    from paceline import Accelerator
    from rankside import failing, mark

    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(4, 1))
    accelerator.backward(model(torch.ones(2, 4)).sum())
    mark("apart")
    with failing():
        if accelerator.is_main_process:
            accelerator.backward(model(torch.ones(2, 4)).sum())
        accelerator.wait_for_everyone()


def test_training_on_one_rank_only_is_told_at_once() -> None:
    for rank in run_by_torch(2, training_alone):
        assert "CollectiveMismatchError" in rank.exception["kinds"], rank.exception
        assert rank.exception["at"] - rank.marks["apart"] < 2.0


def one_goes() -> None:
    import time

    import torch

    from paceline import Accelerator
    from paceline.engines.torch import device_group
    from rankside import ARGS, RANK, failing, mark

    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(4, 1))
    accelerator.backward(model(torch.ones(2, 4)).sum())
    link = device_group.device_group(accelerator.state.partial.group, torch.device("cpu"))
    if RANK == 1 and ARGS["where"] == "bucket":
        # The others are past the point where all tell what they do, and wait for the bucket.
        link._begin_all_reduce = lambda tensor, op: None
        device_group.DeviceGroup.wait = lambda self, work: (mark("there"), time.sleep(60))
    with failing():
        if RANK == 1 and ARGS["where"] == "raises":
            raise OSError("the disk is full")
        if RANK == 1 and ARGS["where"] == "before":
            mark("there")
            time.sleep(60)
        accelerator.backward(model(torch.ones(2, 4)).sum())


@pytest.mark.parametrize("where", ["before", "bucket"])
def test_a_rank_that_is_killed_is_named(where: str) -> None:
    killed = run_by_torch(
        2, one_goes, args={"where": where}, breaks=[Break(1, "there", delay_s=0.3)], expect={1: -9}
    )
    error = killed[0].exception
    assert "PeerLostError" in error["kinds"], error
    assert error["dead_ranks"] == [1]
    assert error["at"] - killed[1].broken_at < 2.0
