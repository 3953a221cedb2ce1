# SPDX-License-Identifier: Apache-2.0
"""Which process this is, who runs what, and that two Accelerators do not disturb each other."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from datetime import timedelta
from types import ModuleType

import pytest

from paceline import Accelerator, DistributedType, InitProcessGroupKwargs, PartialState
from paceline.state import AcceleratorState, GradientState
from ways import run_ways

# --- each member on 1, 2 and 3 processes ----------------------------------------------------------


def _who() -> None:
    from paceline import Accelerator, PartialState
    from paceline.state import AcceleratorState
    from rankside import RANK, WORLD, out

    accelerator = Accelerator()
    states = (accelerator, accelerator.state, PartialState(), AcceleratorState())
    for state in states:
        assert state.process_index == state.local_process_index == RANK
        assert state.num_processes == WORLD
        assert state.is_main_process is state.is_local_main_process is (RANK == 0)
        assert state.is_last_process is (RANK == WORLD - 1)
        assert state.use_distributed is (WORLD > 1)
        assert state.distributed_type == ("NO" if WORLD == 1 else "MULTI_CPU")
        assert str(state.device) == "cpu"
    assert accelerator.multi_device is False, "as documented: CPUs do not count"
    state = PartialState()
    assert state.initialized
    assert str(state.default_device) == "cpu"
    assert (state.debug, state.fork_launched) == (True, False)
    assert (state.backend is None) == (WORLD == 1)
    state.device = None
    state.set_device()
    assert str(state.device) == "cpu"
    assert f"Process index: {RANK}" in repr(state)
    assert "Mixed precision type: no" in repr(accelerator.state)
    out("ok")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_who_is_who(way: str, world: int) -> None:
    results = run_ways(way, world, _who, timeout=120, env={"ACCELERATE_DEBUG_MODE": "1"})
    assert [rank.outs for rank in results] == [["ok"]] * world


def _turns() -> None:
    import time

    from paceline import Accelerator, PartialState
    from rankside import RANK, WORLD, mark, out

    accelerator, state = Accelerator(), PartialState()
    for first in (accelerator.main_process_first, state.local_main_process_first):
        with first():
            mark(f"{first.__name__} begins")
            time.sleep(0.05)
            mark(f"{first.__name__} ends")
    accelerator.print("one line", "only", sep="-")
    state.print("another")
    for holder in (accelerator, state):
        ran = [
            holder.on_main_process(lambda x: x)(1),
            holder.on_local_main_process(lambda x: x)(1),
            holder.on_last_process(lambda x: x)(1),
            holder.on_process(lambda x: x, process_index=1)(1),
            holder.on_process(process_index=1)(lambda x: x)(1),
            holder.on_local_process(lambda x: x, local_process_index=1)(1),
            holder.on_local_process(local_process_index=1)(lambda x: x)(1),
        ]
        main, last, one = RANK == 0, RANK == WORLD - 1, WORLD == 1 or RANK == 1
        expected = [main, main, last, one, one, one, one]
        assert [x is not None for x in ran] == expected, ran

    @accelerator.on_main_process
    def documented(a: int, b: int = 2) -> int:
        "Its text."
        return a + b

    assert (documented.__name__, documented.__doc__) == ("documented", "Its text.")
    assert documented(1, b=4) == (5 if RANK == 0 else None)
    mark("arrives")
    accelerator.wait_for_everyone()
    mark("goes on")
    out("ok")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_who_goes_first_prints_and_runs(way: str, world: int) -> None:
    results = run_ways(way, world, _turns, timeout=120)
    assert [rank.outs for rank in results] == [["ok"]] * world
    for name in ("main_process_first", "local_main_process_first"):
        ended = results[0].marks[f"{name} ends"]
        assert all(rank.marks[f"{name} begins"] >= ended for rank in results[1:])
    arrived = max(rank.marks["arrives"] for rank in results)
    assert all(rank.marks["goes on"] >= arrived for rank in results)
    printed = [rank.stdout.count("one line-only\nanother\n") for rank in results]
    assert printed == [1] + [0] * (world - 1)


def _shares() -> None:
    import pytest

    from paceline import Accelerator, PartialState
    from rankside import RANK, WORLD, out
    from ways import torch

    accelerator = Accelerator()
    inputs = list(range(7))
    each, extra = divmod(7, WORLD)
    start = RANK * each + min(RANK, extra)
    mine = inputs[start : start + each + (RANK < extra)]
    longest = each + bool(extra)
    padded = mine + [6] * (longest - len(mine))
    for split in (accelerator.split_between_processes, PartialState().split_between_processes):
        with split(inputs) as share:
            assert share == mine
        with split(inputs, apply_padding=True) as share:
            assert share == padded
        with split(tuple(inputs)) as share:
            assert share == tuple(mine)
        with split({"a": inputs, "b": inputs[::-1]}) as share:
            assert share == {"a": mine, "b": inputs[::-1][start : start + len(mine)]}
        with split(torch.arange(7)) as share:
            assert share.tolist() == mine
        with split(torch.arange(7), apply_padding=True) as share:
            assert share.tolist() == padded
    with accelerator.split_between_processes([5]) as share:
        assert share == ([5] if RANK == 0 else [])
    with accelerator.split_between_processes([5], apply_padding=True) as share:
        assert share == [5]
    if WORLD > 1:
        for bad, error in (({"a": [1], "b": []}, ValueError), (3, TypeError), ("text", TypeError)):
            refused = pytest.raises(error, match="split_between_processes")
            with refused, accelerator.split_between_processes(bad):
                raise AssertionError("it was shared out")
    out("ok")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_split_between_processes(way: str, world: int) -> None:
    assert [rank.outs for rank in run_ways(way, world, _shares, timeout=120)] == [["ok"]] * world


# --- one default state, and states of one's own -------------------------------------------------


def test_states_before_there_is_an_accelerator() -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    with pytest.raises(ValueError, match=r"no Accelerator yet: call Accelerator\(\) first"):
        AcceleratorState()
    assert GradientState().num_steps == 1
    assert GradientState() is not GradientState(), "nobody's: not kept"


def test_states_without_arguments_are_those_of_the_first_accelerator() -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    first = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    second = Accelerator()
    assert AcceleratorState() is first.state
    assert AcceleratorState().mixed_precision == "bf16"
    assert GradientState() is first.gradient_state
    assert GradientState().num_steps == 3
    assert GradientState().plugin_kwargs == {"num_steps": 3}
    assert GradientState().dataloader_references == [None]
    assert AcceleratorState().partial is PartialState() is second.state.partial
    del first
    gc.collect()
    assert AcceleratorState() is second.state, "the first has gone, and nothing kept it"


def test_trap_14_a_second_accelerator_leaves_the_first_alone() -> None:
    first = Accelerator(gradient_accumulation_steps=4, mixed_precision="bf16")
    second = Accelerator()
    assert first.gradient_accumulation_steps == 4
    assert (first.mixed_precision, second.mixed_precision) == ("bf16", "no")
    second.gradient_accumulation_steps = 7
    first.sync_gradients = False
    first.step = 3
    assert (first.gradient_accumulation_steps, second.sync_gradients, second.step) == (4, True, 0)


def test_trap_14_init_kwargs_that_come_too_late_are_an_error() -> None:
    Accelerator()
    late = InitProcessGroupKwargs(timeout=timedelta(seconds=1234))
    with pytest.raises(ValueError, match=r"timeout cannot be set: got 0:20:34; pass"):
        Accelerator(kwargs_handlers=[late])
    with pytest.raises(ValueError, match="timeout cannot be set"):
        PartialState(timeout=timedelta(seconds=1234))


def test_there_is_one_partial_state() -> None:
    state = PartialState()
    assert PartialState(cpu=True) is state
    assert state.distributed_type is DistributedType.NO
    state.destroy_process_group()
    assert not state.initialized
    assert not PartialState.is_initialized()
    assert PartialState() is not state
    with pytest.raises(TypeError, match="no_such"):
        PartialState(no_such=1)


def test_cpu_comes_too_late_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState(), "device", "cuda:0")
    with pytest.raises(ValueError, match="cpu=True comes too late: .* on cuda:0"):
        Accelerator(cpu=True)


def test_a_copy_stays_with_its_accelerator(torch: ModuleType) -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    first = Accelerator(gradient_accumulation_steps=2)
    second = Accelerator(gradient_accumulation_steps=3)
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    copied = copy.deepcopy(second.prepare(optimizer))
    assert first.gradient_accumulation_steps == 2
    assert copied.gradient_state is second.gradient_state
    for state in (second.state, second.gradient_state, PartialState()):
        assert copy.copy(state) is copy.deepcopy(state) is state
    for state in (first.state, first.gradient_state, PartialState()):
        assert pickle.loads(pickle.dumps(state)) is state, "each process has its own"


# --- memory ---------------------------------------------------------------------------------------


def test_free_memory_keeps_nothing_alive(torch: ModuleType) -> None:
    accelerator = Accelerator()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.ones(4, 2))
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    watched = [weakref.ref(obj) for obj in (model, optimizer, loader, scheduler, data)]
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for (x,) in loader:
        accelerator.backward(model(x).sum())
        optimizer.step()
        scheduler.step()
    del x, data
    accelerator.step = 1
    model, optimizer, loader, scheduler = accelerator.free_memory(
        model, optimizer, loader, scheduler
    )
    assert (model, optimizer, loader, scheduler, accelerator.step) == (None, None, None, None, 0)
    gc.collect()  # what the call's own frame still held
    assert [ref() for ref in watched] == [None] * 5
    assert accelerator.clear(1, 2) == [None, None]


def test_an_accelerator_goes_when_nobody_needs_it(torch: ModuleType) -> None:
    accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(2, 1))
    gone = weakref.ref(accelerator)
    del accelerator
    gc.collect()
    assert gone() is None
    assert model(torch.ones(1, 2)).shape == (1, 1)
