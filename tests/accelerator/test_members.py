# SPDX-License-Identifier: Apache-2.0
"""What ``prepare`` says and gives back, and the members that only tell something."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

import paceline
from paceline import Accelerator, DataLoaderConfiguration
from ways import run_ways

# --- prepare --------------------------------------------------------------------------------------


def _prepared() -> None:
    import logging

    from paceline import Accelerator, DataLoaderConfiguration
    from paceline.optimizer import AcceleratedOptimizer
    from paceline.scheduler import AcceleratedScheduler
    from rankside import RANK, WORLD, out
    from ways import torch

    heard = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logging.getLogger("paceline").addHandler(Ear())
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    data = torch.utils.data.TensorDataset(torch.ones(24, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    other = {"anything": 1}
    given = (scheduler, other, loader, None, model, optimizer)
    done = accelerator.prepare(*given)
    assert isinstance(done, tuple)
    assert done[1] is other
    assert done[3] is None
    assert done[4] is model, "the model is the same object"
    assert type(done[5]) is AcceleratedOptimizer
    assert type(done[0]) is AcceleratedScheduler
    for before, after in zip(given, done, strict=True):
        assert isinstance(after, type(before))
        known = before is not other and before is not None
        assert getattr(after, "_is_accelerate_prepared", False) is known
    assert accelerator.prepare(done[2]) is done[2], "one argument: the object itself"
    again = accelerator.prepare(*done, {})
    assert all(x is y for x, y in zip(again, done, strict=False)), "preparing again does nothing"
    assert len(list(accelerator._models)) == len(accelerator._optimizers) == 1
    assert len(accelerator._dataloaders) == len(accelerator._schedulers) == 1
    known = [text for text in heard if "[prepare]" in text]
    assert known == [text for text in known if "builtins.dict was given back untouched" in text]
    assert len(known) == (RANK == 0), "once a type, on the main process"
    halves = DataLoaderConfiguration(split_batches=True)
    split = Accelerator(dataloader_config=halves, mixed_precision="bf16")
    if 12 % WORLD == 0:
        split.prepare(torch.utils.data.DataLoader(data, batch_size=12), model)
    out("ok")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_prepare_gives_back_what_is_documented_and_says_what_will_run(way: str, world: int) -> None:
    results = run_ways(way, world, _prepared, timeout=120)
    assert [rank.outs for rank in results] == [["ok"]] * world
    lines = [line for rank in results for line in rank.stderr.splitlines() if "global" in line]
    many = "1 process" if world == 1 else f"{world} processes"
    steps = -(-(6 // world) // 2)
    counted = f"{steps} {'step' if steps == 1 else 'steps'} per epoch"
    first = (
        f"paceline: {many} on cpu, precision no; global batch {8 * world} = 4 per process x "
        f"{world} x 2 accumulated, {counted}"
    )
    last = (
        f"paceline: {many} on cpu, precision bf16; global batch 12 = {12 / world:g} per process x "
        f"{world} x 1 accumulated, 2 steps per epoch"
    )
    assert lines == [first, first, first, last]
    assert all("global" not in rank.stdout for rank in results)


@pytest.fixture
def loader(torch: ModuleType) -> Iterator[object]:
    return torch.utils.data.DataLoader([1, 2, 3], batch_size=2)


@pytest.mark.parametrize("level", ["warning", "error", "CRITICAL"])
def test_the_line_of_prepare_can_be_silenced(
    loader: object, level: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", level)
    Accelerator().prepare(loader)
    assert capfd.readouterr() == ("", "")


def test_one_line_for_several_loaders_and_for_one_without_a_length(
    torch: ModuleType, loader: object, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[name-defined,misc]
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    Accelerator().prepare(loader, torch.utils.data.DataLoader(Stream(), batch_size=5))
    assert capfd.readouterr().err == (
        "paceline: 1 process on cpu, precision no; global batch 2 = 2 per process x 1 x 1 "
        "accumulated, 2 steps per epoch | global batch 5 = 5 per process x 1 x 1 accumulated, "
        "unknown number of steps per epoch\n"
    )
    Accelerator().prepare(torch.nn.Linear(1, 1))
    assert capfd.readouterr().err == "", "nothing to count without a loader"


def test_placement_must_be_given_for_each_object(torch: ModuleType) -> None:
    with pytest.raises(ValueError, match="device_placement has 1 entries, expected one for each"):
        Accelerator().prepare(torch.nn.Linear(1, 1), 3, device_placement=[True])


# --- members that only tell something -------------------------------------------------------------


def test_members_tell_what_was_asked_for() -> None:
    config = DataLoaderConfiguration(
        split_batches=True, even_batches=False, use_seedable_sampler=False, non_blocking=True
    )
    accelerator = Accelerator(
        device_placement=False,
        mixed_precision="bf16",
        dataloader_config=config,
        rng_types=["torch", "generator"],
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[paceline.GradScalerKwargs(init_scale=8.0)],
    )
    assert accelerator.dataloader_config == config
    config.even_batches = True  # its fields can be set, but what is running keeps its own
    accelerator.dataloader_config.even_batches = True
    assert not accelerator.dataloader_config.even_batches
    config.shard = "rows"
    with pytest.raises(ValueError, match="shard is not known"):
        paceline.Accelerator(dataloader_config=config)
    config.even_batches, config.shard = False, "batches"
    assert accelerator.split_batches is accelerator.non_blocking is True
    assert accelerator.even_batches is accelerator.use_seedable_sampler is False
    assert accelerator.dispatch_batches is None
    assert accelerator.use_stateful_dataloader is False
    assert accelerator.device_placement is accelerator.step_scheduler_with_optimizer is False
    assert (accelerator.mixed_precision, accelerator.native_amp) == ("bf16", True)
    assert accelerator.rng_types == ["torch", "generator"]
    assert accelerator.log_with == []
    assert accelerator.scaler_handler.init_scale == 8.0
    assert accelerator.ddp_handler.bucket_cap_mb == 25
    assert accelerator.init_handler.timeout is None
    assert accelerator.autocast_handler.enabled is True
    assert accelerator.profile_handler.activities is None
    accelerator.even_batches = True
    assert (accelerator.even_batches, config.even_batches) == (True, False)


def test_what_is_not_in_use_answers_as_documented() -> None:
    accelerator = Accelerator()
    for name in ("deepspeed_plugin", "parallelism_config", "torch_device_mesh"):
        assert getattr(accelerator, name) is None
    for name in ("is_fsdp2", "is_composable_parallelism_enabled", "has_lomo_optimizer"):
        assert getattr(accelerator, name) is False
    assert accelerator.fp8_backend == "NO"
    for name in ("data_parallel_rank", "data_parallel_shard_rank", "tensor_parallel_rank"):
        with pytest.raises(RuntimeError, match=f"{name}: there is no parallelism_config"):
            getattr(accelerator, name)
    for name in ("pipeline_parallel_rank", "context_parallel_rank"):
        with pytest.raises(NotImplementedError, match="parallelism is not supported"):
            getattr(accelerator, name)
    with pytest.raises(AttributeError, match="no maybe_context_parallel: only data parallelism"):
        _ = accelerator.maybe_context_parallel
    with pytest.raises(AttributeError, match="'Accelerator' object has no attribute 'nonsense'"):
        _ = accelerator.nonsense


def test_verify_device_map(torch: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    accelerator = Accelerator()
    assert accelerator.verify_device_map(model) is False
    model[0].hf_device_map = {"a": 0, "b": 1}
    assert accelerator.verify_device_map(model) is True


# --- traps ----------------------------------------------------------------------------------------


def _reduce() -> None:
    from paceline import Accelerator
    from paceline.utils import gather_object, reduce, set_seed, synchronize_rng_states
    from rankside import RANK, WORLD, out
    from ways import torch

    accelerator = Accelerator()
    mine = torch.tensor([float(RANK + 1)])
    total = sum(range(1, WORLD + 1))
    assert accelerator.reduce(mine).tolist() == [total], "the sum, as documented"
    assert reduce(mine).tolist() == [total / WORLD], "the mean, as documented"
    assert accelerator.reduce(mine, "mean", scale=2.0).tolist() == [2 * total / WORLD]
    assert gather_object("ab") == ["ab"] * WORLD
    assert gather_object({"a": 1}) == [{"a": 1}] * WORLD
    assert gather_object([RANK]) == list(range(WORLD))
    set_seed(3, device_specific=True)
    own = torch.randn(1).tolist()
    assert len({str(x) for x in gather_object([own])}) == WORLD
    synchronize_rng_states(["torch"])
    drawn = torch.randn(1).tolist()
    assert gather_object([drawn]) == [drawn] * WORLD, "all go on from rank 0's state"
    set_seed(3)
    drawn = torch.randn(1).tolist()
    assert gather_object([drawn]) == [drawn] * WORLD
    generator = torch.Generator()
    generator.manual_seed(RANK)
    synchronize_rng_states(["generator"], generator)
    drawn = torch.randn(1, generator=generator).tolist()
    assert gather_object([drawn]) == [drawn] * WORLD
    out("ok")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_trap_13_and_18_reduce_and_gather_object_are_as_documented(way: str, world: int) -> None:
    assert [rank.outs for rank in run_ways(way, world, _reduce, timeout=120)] == [["ok"]] * world
