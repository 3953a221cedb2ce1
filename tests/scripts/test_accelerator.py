# SPDX-License-Identifier: Apache-2.0
"""Accelerator in one process: arguments, environment, prepare, and what it gives back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from datetime import timedelta

import pytest

import paceline as torch
from paceline import Accelerator
from paceline.accelerator import AcceleratedOptimizer, AcceleratedScheduler, DataLoaderShard
from paceline.errors import ConfigError
from paceline.optim.lr_scheduler import LambdaLR, LRScheduler
from paceline.utils import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    set_seed,
)
from paceline.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    TensorDataset,
)

pytestmark = pytest.mark.usefixtures("one_process")


def _numbers(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n))


# --- arguments --------------------------------------------------------------------------------


def test_argument_order_is_accelerates() -> None:
    names = list(inspect.signature(Accelerator).parameters)
    assert (
        names
        == (
            "device_placement split_batches mixed_precision gradient_accumulation_steps cpu "
            "dataloader_config deepspeed_plugin fsdp_plugin torch_tp_plugin megatron_lm_plugin "
            "rng_types log_with project_dir project_config gradient_accumulation_plugin "
            "step_scheduler_with_optimizer kwargs_handlers dynamo_backend dynamo_plugin "
            "deepspeed_plugins parallelism_config"
        ).split()
    )


def test_defaults() -> None:
    accelerator = Accelerator()
    assert str(accelerator.device) == "cpu"
    assert accelerator.mixed_precision == "no"
    assert accelerator.gradient_accumulation_steps == 1
    assert (accelerator.process_index, accelerator.num_processes) == (0, 1)
    assert accelerator.is_main_process
    assert accelerator.is_local_main_process
    assert accelerator.is_last_process
    assert accelerator.sync_gradients
    assert str(accelerator.distributed_type) == "NO"
    assert accelerator.state.num_processes == 1


@pytest.mark.parametrize("name", ["fsdp_plugin", "deepspeed_plugin", "dynamo_backend"])
def test_argument_of_a_later_version_is_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match=name):
        Accelerator(**{name: "x"})


def test_member_that_is_not_here_says_why() -> None:
    with pytest.raises(AttributeError, match=r"no lomo_backward: .*; call backward\(loss\)"):
        Accelerator().lomo_backward(1)


def test_precision_argument_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert Accelerator().mixed_precision == "bf16"
    assert Accelerator(mixed_precision="no").mixed_precision == "no"


def test_bad_precision() -> None:
    with pytest.raises(ValueError, match="Unknown mixed_precision mode: bf17"):
        Accelerator(mixed_precision="bf17")
    with pytest.raises(NotImplementedError, match="fp8.*use 'bf16'"):
        Accelerator(mixed_precision="fp8")


def test_accumulation_argument_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    assert Accelerator().gradient_accumulation_steps == 7
    assert Accelerator(gradient_accumulation_steps=2).gradient_accumulation_steps == 2
    assert Accelerator(gradient_accumulation_steps=1).gradient_accumulation_steps == 1


@pytest.mark.parametrize("value", ["-1", "x", "0"])
def test_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
    with pytest.raises(ConfigError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        Accelerator()


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_bad_accumulation_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        Accelerator(gradient_accumulation_steps=steps)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        Accelerator(
            gradient_accumulation_steps=2, gradient_accumulation_plugin=GradientAccumulationPlugin()
        )
    with pytest.raises(ValueError, match="split_batches"):
        Accelerator(split_batches=True, dataloader_config=DataLoaderConfiguration())
    with pytest.raises(ValueError, match="only one AutocastKwargs"):
        Accelerator(kwargs_handlers=[AutocastKwargs(), AutocastKwargs()])
    with pytest.raises(ValueError, match="unsupported kwargs handler"):
        Accelerator(kwargs_handlers=[GradientAccumulationPlugin()])


def test_trap_1_split_batches_is_heeded() -> None:
    assert Accelerator(split_batches=True).split_batches


def test_trap_14_second_accelerator_does_not_disturb_the_first() -> None:
    first = Accelerator(gradient_accumulation_steps=4)
    second = Accelerator(mixed_precision="bf16")
    assert (first.gradient_accumulation_steps, first.mixed_precision) == (4, "no")
    assert (second.gradient_accumulation_steps, second.mixed_precision) == (1, "bf16")
    with first.accumulate():
        assert not first.sync_gradients
        assert second.sync_gradients


def test_timeout_that_comes_too_late_is_an_error() -> None:
    Accelerator()
    with pytest.raises(ValueError, match="exists already"):
        Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=5))])


def test_kwargs_handler_tells_what_was_changed() -> None:
    assert DistributedDataParallelKwargs(bucket_cap_mb=1).to_kwargs() == {"bucket_cap_mb": 1}
    with pytest.raises(ValueError, match="bucket_cap_mb"):
        DistributedDataParallelKwargs(bucket_cap_mb=0)


# --- prepare ----------------------------------------------------------------------------------


def test_prepare_keeps_order_and_leaves_the_rest_untouched() -> None:
    accelerator = Accelerator()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    loader = DataLoader(_numbers(4))
    other = object()
    done = accelerator.prepare(scheduler, other, loader, "text", model, optimizer)
    kinds = [type(obj) for obj in done]
    assert kinds[0] is AcceleratedScheduler
    assert done[1] is other
    assert kinds[2] is DataLoaderShard
    assert done[3] == "text"
    assert done[4] is model
    assert kinds[5] is AcceleratedOptimizer
    assert accelerator.prepare(model) is model
    assert accelerator.prepare(done[5]) is done[5]
    assert accelerator.unwrap_model(model) is model


def test_prepared_objects_pass_for_what_they_hold() -> None:
    accelerator = Accelerator()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    optimizer, loader, scheduler = accelerator.prepare(
        optimizer, DataLoader(_numbers(4), 2), scheduler
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(loader, DataLoader)
    assert isinstance(scheduler, LRScheduler)
    assert loader.batch_size == 2
    assert loader.total_batch_size == 2
    assert loader.total_dataset_length == 4
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    assert scheduler.get_last_lr() == [0.1]
    LambdaLR(optimizer, lambda step: 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_wrong_number_of_placements() -> None:
    with pytest.raises(ValueError, match="2 entries"):
        Accelerator().prepare(torch.nn.Linear(1, 1), device_placement=[True, False])


def test_bf16_forward_gives_fp32_and_can_be_taken_off() -> None:
    accelerator = Accelerator(mixed_precision="bf16")
    model = accelerator.prepare(torch.nn.Linear(8, 8))
    x = torch.randn(4, 8)
    mixed = model(x)
    assert mixed.dtype == torch.float32
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)(x)
    error = (mixed - plain).abs().max().item()
    assert 0 < error < 0.1, "bf16 has 8 bits: it differs, by little"


def test_bf16_model_can_be_copied_and_the_copy_is_its_own() -> None:
    accelerator = Accelerator(mixed_precision="bf16")
    model = accelerator.prepare(torch.nn.Linear(4, 4))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 4)
    before = twin(x).tolist()
    with torch.no_grad():
        model.weight.zero_()
    assert twin(x).tolist() == before


def test_autocast_block() -> None:
    a = torch.randn(4, 4)
    with Accelerator(mixed_precision="bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Accelerator(mixed_precision="bf16").autocast(AutocastKwargs(enabled=False)):
        assert (a @ a).dtype == torch.float32
    with Accelerator().autocast():
        assert (a @ a).dtype == torch.float32


# --- the step ---------------------------------------------------------------------------------


def test_accumulation_steps_at_the_window_and_at_the_end() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=4)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    data = DataLoader(TensorDataset(torch.ones(6, 1)), batch_size=1)
    model, optimizer, scheduler, data = accelerator.prepare(model, optimizer, scheduler, data)
    synced, seen = [], []
    for (x,) in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).sum())
            if accelerator.sync_gradients:
                seen.append(model.weight.grad.item())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        synced.append(accelerator.sync_gradients)
    assert synced == [False, False, False, True, False, True]
    assert seen == [1.0, 1.0], "the last window is divided by its true length, 2"
    assert scheduler.get_last_lr()[0] == pytest.approx(0.1 / 3)
    assert model.weight.grad is None


def test_clip_grad_norm_gives_the_norm_and_waits_for_the_window() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    w = torch.nn.Parameter(torch.zeros(2))
    for clipped in (False, True):
        with accelerator.accumulate():
            (w * torch.tensor([3.0, 4.0])).sum().backward()
            norm = accelerator.clip_grad_norm_([w], 1.0)
        assert norm.item() == pytest.approx(10.0 if clipped else 5.0)
        assert w.grad.square().sum().item() == pytest.approx(1.0 if clipped else 25.0, rel=1e-4)


def test_gather_and_reduce_alone() -> None:
    accelerator = Accelerator()
    data = {"a": torch.tensor(1.0), "b": [torch.ones(2)]}
    assert accelerator.gather(data)["b"][0].tolist() == [1, 1]
    assert accelerator.reduce(torch.ones(2), "mean", scale=0.5).tolist() == [0.5, 0.5]
    with pytest.raises(TypeError, match="got str"):
        accelerator.gather("text")
    with pytest.raises(ValueError, match="reduction"):
        accelerator.reduce(torch.ones(1), "median")


def test_save_and_print_on_the_main_process(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    accelerator = Accelerator()
    accelerator.save({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.load(tmp_path / "x.safetensors")["w"].tolist() == [1, 1]
    accelerator.print("a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"


def test_decorators() -> None:
    accelerator = Accelerator()
    assert accelerator.on_main_process(lambda: 3)() == 3
    assert accelerator.on_process(lambda: 3, process_index=1)() == 3, "alone: runs everything"
    assert accelerator.on_last_process(lambda: 3)() == 3


# --- loaders ----------------------------------------------------------------------------------


def _read(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def test_loader_alone_gives_its_own_batches_and_knows_the_last() -> None:
    accelerator = Accelerator()
    loader = accelerator.prepare(DataLoader(_numbers(5), batch_size=2))
    assert len(loader) == 3
    ends = []
    for _ in loader:
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert ends == [False, False, True]
    assert accelerator.gradient_state.active_dataloader is None
    assert _read(loader) == [[0, 1], [2, 3], [4]]


def test_shuffle_is_new_each_epoch_and_repeats_from_the_seed() -> None:
    def epochs() -> list[list[list[int]]]:
        set_seed(3)
        loader = Accelerator().prepare(DataLoader(_numbers(10), batch_size=3, shuffle=True))
        return [_read(loader), _read(loader)]

    first, second = epochs()
    assert first != second
    assert sorted(sum(first, [])) == list(range(10))
    assert epochs() == [first, second]
    set_seed(3)
    loader = Accelerator().prepare(DataLoader(_numbers(10), batch_size=3, shuffle=True))
    loader.set_epoch(1)
    assert _read(loader) == second


def test_shuffle_without_seedable_sampler_follows_the_generator() -> None:
    config = DataLoaderConfiguration(use_seedable_sampler=False)

    def epoch() -> list[list[int]]:
        torch.manual_seed(5)
        accelerator = Accelerator(dataloader_config=config)
        return _read(accelerator.prepare(DataLoader(_numbers(9), batch_size=4, shuffle=True)))

    assert epoch() == epoch()


def test_interrupted_iteration_is_forgotten() -> None:
    accelerator = Accelerator()
    loader = accelerator.prepare(DataLoader(_numbers(6), batch_size=2))
    for _ in loader:
        break
    assert accelerator.gradient_state.active_dataloader is None


def test_nested_loops_know_the_inner_loader() -> None:
    accelerator = Accelerator()
    outer, inner = accelerator.prepare(DataLoader(_numbers(2)), DataLoader(_numbers(3)))
    for _ in outer:
        assert accelerator.gradient_state.active_dataloader is outer
        for _ in inner:
            assert accelerator.gradient_state.active_dataloader is inner
        assert accelerator.gradient_state.active_dataloader is outer


def test_batch_sampler_and_sampler_of_the_scripts_own() -> None:
    class Backwards(Sampler):
        def __init__(self, n: int) -> None:
            self.n = n

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.n - 1, -1, -1))

        def __len__(self) -> int:
            return self.n

    accelerator = Accelerator()
    own = accelerator.prepare(DataLoader(_numbers(4), batch_size=2, sampler=Backwards(4)))
    assert _read(own) == [[3, 2], [1, 0]]
    batches = BatchSampler(Backwards(5), 2, drop_last=True)
    own = accelerator.prepare(DataLoader(_numbers(5), batch_sampler=batches))
    assert _read(own) == [[4, 3], [2, 1]]


def test_dataset_of_dicts_and_collate_function() -> None:
    class Dicts(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> dict[str, object]:
            return {"x": torch.tensor([float(i)]), "name": f"n{i}"}

    loader = Accelerator().prepare(DataLoader(Dicts(), batch_size=2))
    batches = list(loader)
    assert batches[1]["name"] == ["n2"]
    assert batches[0]["x"].tolist() == [[0.0], [1.0]]
    upper = DataLoader(Dicts(), batch_size=2, collate_fn=lambda items: [i["name"] for i in items])
    assert list(Accelerator().prepare(upper)) == [["n0", "n1"], ["n2"]]


def test_sampler_without_a_length_and_a_stream() -> None:
    class Endless(Sampler):
        def __iter__(self) -> Iterator[int]:
            return iter([2, 0])

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    accelerator = Accelerator()
    own, stream = accelerator.prepare(
        DataLoader(_numbers(3), sampler=Endless()), DataLoader(Stream(), batch_size=2)
    )
    assert _read(own) == [[2], [0]]
    assert [batch.tolist() for batch in stream] == [[0, 1], [2, 3], [4]]


def test_prepared_optimizer_can_be_copied() -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = Accelerator().prepare(torch.optim.SGD(model.parameters(), lr=0.5))
    twin = copy.deepcopy(optimizer)
    assert type(twin) is AcceleratedOptimizer
    twin.param_groups[0]["lr"] = 0.25
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_split_between_processes_alone() -> None:
    with Accelerator().split_between_processes([1, 2, 3]) as mine:
        assert mine == [1, 2, 3]
