# SPDX-License-Identifier: Apache-2.0
"""A prepared torch model is the model itself: copies, pickles, names, precision, checkpoints."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import pickle
from typing import Any

import pytest

from harness import run_ranks

torch = pytest.importorskip("torch")

from bridge import nets  # noqa: E402 (needs torch)

needs_transformers = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="needs transformers"
)


@pytest.fixture
def accelerator() -> Any:
    from paceline import Accelerator

    made = Accelerator(mixed_precision="bf16")
    yield made
    made.free_memory()


def test_the_object_itself_comes_back(accelerator: Any) -> None:
    model = nets.MLP()
    model.extra = "kept"
    prepared = accelerator.prepare(model)
    assert prepared is model
    assert accelerator.unwrap_model(prepared) is model
    assert isinstance(prepared, nets.MLP)
    assert prepared.extra == "kept"
    assert list(inspect.signature(prepared.forward).parameters) == ["x"]
    assert list(prepared.state_dict()) == list(nets.MLP().state_dict())


def test_outputs_are_fp32_and_inside_is_bf16(accelerator: Any) -> None:
    seen = []
    model = nets.MLP()
    model.last.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    out = accelerator.prepare(model)(torch.ones(2, 8))
    assert (out.dtype, seen) == (torch.float32, [torch.bfloat16])
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert model(torch.ones(2, 8)).dtype == torch.float32
    assert seen[-1] == torch.float32


def test_copies_and_pickles_work_on(accelerator: Any) -> None:
    model = accelerator.prepare(nets.MLP())
    x = torch.ones(2, 8)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert type(other) is nets.MLP
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            other.first.weight.zero_()  # its forward is its own
        assert not torch.equal(other(x), expected)
    assert torch.equal(model(x), expected)


def test_a_compiled_model_is_given_back_as_it_was() -> None:
    from paceline import Accelerator

    accelerator = Accelerator(mixed_precision="bf16")
    compiled = torch.compile(nets.MLP(), backend="eager")
    expected = compiled(torch.ones(2, 8))
    model = accelerator.prepare(compiled)
    assert model is compiled
    assert not torch.equal(model(torch.ones(2, 8)), expected)  # in bf16
    accelerator.free_memory()
    Accelerator().prepare(model)
    assert torch.equal(model(torch.ones(2, 8)), expected)


@needs_transformers
def test_models_of_transformers_keep_their_methods(accelerator: Any) -> None:
    model = accelerator.prepare(nets.fresh("qwen3")).eval()
    ids = torch.randint(0, 50, (2, 5))
    with torch.no_grad():
        grown = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        out = model(input_ids=ids, labels=ids)
    assert grown.shape == (2, 8)
    assert model.config.model_type == "qwen3"
    assert type(out).__name__ == "CausalLMOutputWithPast"
    assert (out.loss.dtype, out["logits"].dtype) == (torch.float32, torch.float32)


def test_state_dicts_with_a_prefix_load() -> None:
    from paceline.engines.torch import ENGINE

    source, target = nets.MLP(), nets.MLP()
    for prefix in ("module.", "_orig_mod."):
        named = {prefix + name: value + 1 for name, value in source.state_dict().items()}
        ENGINE.load_state_dict(target, named, strict=True)
        assert torch.equal(target.last.bias, source.last.bias + 1)
    compiled = torch.compile(target, backend="eager")
    assert list(ENGINE.state_dict(compiled)) == list(source.state_dict())


def mixed_precision() -> None:
    import torch

    from bridge import nets
    from paceline import Accelerator
    from rankside import RANK, WORLD

    # bf16: the forward pass of torch.autocast, so that DDP under autocast has the same bits.
    accelerator = Accelerator(mixed_precision="bf16")
    if WORLD > 1:
        nets.start_gloo()
    for kind in ("mlp", "cnn", "gpt"):
        steps = nets.steps_of(kind, RANK)
        actual = nets.ours(accelerator, kind, steps)
        model = nets.fresh(kind)
        optimizer = nets.optimizer_of(model)
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model

        def autocast(*inputs, wrapped=wrapped):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return wrapped(*inputs).float()

        for step in steps:
            optimizer.zero_grad()
            step(autocast).backward()
            optimizer.step()
        wrong = nets.differences(actual, nets.snapshot(model))
        assert not wrong, f"{kind}: {wrong}"
        # Against fp32 the first step of AdamW moves a weight by at most the learning rate each way.
        full = nets.reference(kind, steps)
        for name in dict(model.named_parameters()):
            worst = (actual[name] - full[name]).abs().max().item()
            assert worst <= 2 * len(steps) * 1e-2, f"{kind}: {name} is off by {worst}"
    accelerator.free_memory()

    # fp16: scaled losses, skipped steps on all ranks together.
    accelerator = Accelerator(mixed_precision="fp16")
    model, optimizer = nets.MLP(), None
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    skipped = []
    for step in range(4):
        x = torch.ones(2, 8)
        if step == 1 and RANK == WORLD - 1:
            x[0, 0] = float("inf")
        accelerator.backward(model(x).square().mean())
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        skipped.append(accelerator.optimizer_step_was_skipped)
        optimizer.zero_grad()
    assert skipped == [False, True, False, False], skipped
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not torch.equal(before[0], next(model.parameters()))
    for p in model.parameters():
        everyone = accelerator.gather(p.detach()[None])
        assert all(torch.equal(p, other) for other in everyone)


@pytest.mark.parametrize("world", [1, 2])
def test_mixed_precision_beside_autocast(world: int) -> None:
    run_ranks(world, mixed_precision, timeout=100)


def past_forward() -> None:
    import torch
    from torch import nn

    from paceline import Accelerator
    from rankside import RANK

    class Scored(nn.Linear):
        def score(self, x):
            return super().forward(x).square().mean()

    accelerator = Accelerator()
    model = accelerator.prepare(Scored(3, 2))
    whole = Scored(3, 2)
    whole.load_state_dict(model.state_dict())
    xs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    model.score(xs[RANK]).backward()
    (sum(whole.score(x) for x in xs) / 2).backward()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        rows = accelerator.gather(p.grad[None])
        assert torch.equal(rows[0], rows[1])


def test_a_method_called_past_forward_does_not_bypass_the_reduction() -> None:
    run_ranks(2, past_forward, with_torch=True, timeout=60)


def half_parameters() -> None:
    import torch

    from bridge import nets
    from paceline import Accelerator
    from rankside import RANK

    accelerator = Accelerator()
    nets.start_gloo()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(RANK))
    for dtype in (torch.bfloat16, torch.float64):
        ours, theirs = nets.fresh("mlp").to(dtype), nets.fresh("mlp").to(dtype)
        ours = accelerator.prepare(ours)
        wrapped = torch.nn.parallel.DistributedDataParallel(theirs)
        accelerator.backward(ours(x.to(dtype)).float().square().mean())
        wrapped(x.to(dtype)).float().square().mean().backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            # Halves are exact, one sum of two numbers is rounded once: equal to the last bit.
            assert torch.equal(p.grad, q.grad), dtype


def test_parameters_of_other_dtypes_have_the_bits_of_ddp() -> None:
    run_ranks(2, half_parameters, timeout=60)
