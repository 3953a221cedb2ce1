# SPDX-License-Identifier: Apache-2.0
"""``param.grad`` as a view of the bucket: everything that torch does to gradients."""

from __future__ import annotations

import pytest

from harness import run_ranks

pytest.importorskip("torch")


def ordinary_and_odd_passes() -> None:
    import copy

    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    from paceline import Accelerator
    from rankside import ARGS, RANK, WORLD

    accelerator = Accelerator()
    generator = torch.Generator().manual_seed(RANK)

    def data(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def prepared(make):  # the prepared model, and a plain copy of what it was
        torch.manual_seed(3)
        model = make()
        return accelerator.prepare(model), copy.deepcopy(model)

    def check(model, plain, what):
        """The gradients are the ranks' mean of the plain copy's."""
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            everyone = accelerator.gather(torch.tensor([q.grad is not None]))
            if not everyone.any():
                assert p.grad is None, f"{what}: {name} has a gradient"
                continue
            mine = torch.zeros_like(q) if q.grad is None else q.grad
            expected = accelerator.reduce(mine, "mean")
            assert p.grad is not None, f"{what}: {name} has no gradient"
            assert p.grad.stride() == p.stride() or p.grad.numel() < 2, f"{what}: {name} strides"
            assert torch.equal(p.grad, expected), f"{what}: {name}"
        for one in (model, plain):
            one.zero_grad()

    def twin():
        return prepared(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))

    # loss.backward() of the script's own.
    model, plain = twin()
    x = data(3, 4)
    model(x).sum().backward()
    plain(x).sum().backward()
    check(model, plain, "loss.backward()")

    # Several passes before a step: each is reduced.
    total = [torch.zeros_like(p) for p in plain.parameters()]
    for _ in range(3):
        x = data(3, 4)
        accelerator.backward(model(x).square().sum())
        plain.zero_grad()
        plain(x).square().sum().backward()
        for sum_, p in zip(total, plain.parameters(), strict=True):
            sum_ += accelerator.reduce(p.grad, "mean")
    for p, sum_ in zip(model.parameters(), total, strict=True):
        torch.testing.assert_close(p.grad, sum_)
    model.zero_grad()
    plain.zero_grad()

    # no_sync, with one backward pass each way, then a pass that reduces all of it.
    for quiet in (True, True, False):
        x = data(3, 4)
        if quiet:
            with accelerator.no_sync(model):
                accelerator.backward(model(x).sum())
        else:
            accelerator.backward(model(x).sum())
        plain(x).sum().backward()
    check(model, plain, "no_sync")

    # Gradients left from no_sync, of a parameter that the reducing pass does not use.
    branches, plain = prepared(lambda: nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]))
    branches.forward = lambda which, x: branches[which](x)
    plain.forward = lambda which, x: plain[which](x)
    x = data(3, 4)
    with accelerator.no_sync(branches):
        accelerator.backward(branches(0, x).sum())
    plain(0, x).sum().backward()
    accelerator.backward(branches(1, x).sum())
    plain(1, x).sum().backward()
    check(branches, plain, "no_sync, then unused")

    # A parameter that only one rank uses; and none that uses it.
    x = data(3, 4)
    accelerator.backward(branches(RANK % 2, x).sum())
    plain(RANK % 2, x).sum().backward()
    check(branches, plain, "used by some")
    accelerator.backward(branches(0, x).sum())
    plain(0, x).sum().backward()
    check(branches, plain, "used by none")

    # Frozen from the start.
    def frozen():
        made = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
        made[0].requires_grad_(False)
        return made

    model, plain = prepared(frozen)
    x = data(3, 4)
    accelerator.backward(model(x).sum())
    plain(x).sum().backward()
    check(model, plain, "frozen")

    # create_graph makes new gradients; torch.autograd.grad touches none.
    model, plain = twin()
    for one in (model, plain):
        x = torch.linspace(0, 1 + RANK, 12).reshape(3, 4).requires_grad_()
        (slope,) = torch.autograd.grad(one(x).sum(), x, create_graph=True)
        assert all(p.grad is None for p in one.parameters())
        loss = slope.square().sum() + one(x).sum()
        if one is model:
            accelerator.backward(loss, create_graph=True)
        else:
            loss.backward()
    check(model, plain, "create_graph")

    # retain_graph, and a gradient that the script made.
    x = data(3, 4)
    for one, backward in ((model, accelerator.backward), (plain, torch.Tensor.backward)):
        for p in one.parameters():
            p.grad = torch.full_like(p, float(RANK))
        loss = one(x).sum()
        backward(loss, retain_graph=True)
    check(model, plain, "own gradients")

    # Checkpointing without reentrance; with it, a weight used once.
    model, plain = twin()
    for reentrant in (False, True):
        x = data(3, 4).requires_grad_()
        for one, backward in ((model, accelerator.backward), (plain, torch.Tensor.backward)):
            hidden = checkpoint(one[0], x, use_reentrant=reentrant)
            backward(checkpoint(one[2], hidden.tanh(), use_reentrant=reentrant).sum())
        check(model, plain, f"checkpoint, reentrant {reentrant}")
        for one in (model, plain):  # the same, started by the script
            hidden = checkpoint(one[0], x, use_reentrant=reentrant)
            checkpoint(one[2], hidden.tanh(), use_reentrant=reentrant).sum().backward()
        check(model, plain, f"checkpoint, reentrant {reentrant}, loss.backward()")

    # Memory formats.
    model, plain = prepared(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)).to(
            memory_format=torch.channels_last
        )
    )
    for _ in range(2):
        x = data(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        accelerator.backward(model(x).sum())
        plain(x).sum().backward()
        assert model[0].weight.grad.is_contiguous(memory_format=torch.channels_last)
        for one in (model, plain):
            one.zero_grad(set_to_none=False)

    # Complex, bf16 and 0-d parameters, and one of no elements.
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
            self.b = nn.Parameter(torch.randn(4).bfloat16())
            self.s = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
            self.e = nn.Parameter(torch.zeros(0, 3))

        def forward(self, x):
            return (self.c * x).abs().sum() + self.b.float().sum() * x + self.s * x + self.e.sum()

    model, plain = prepared(Odd)
    for _ in range(2):
        x = torch.tensor(RANK + 1.0)
        accelerator.backward(model(x))
        plain(x).backward()
        check(model, plain, "odd dtypes")

    # Compiled after and before prepare.
    for compile_first in ARGS.get("compile_first", (True, False)):
        torch.manual_seed(3)
        base = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        plain = copy.deepcopy(base)
        if compile_first:
            model = accelerator.prepare(torch.compile(base, backend="aot_eager"))
        else:
            model = torch.compile(accelerator.prepare(base), backend="aot_eager")
        for _ in range(2):
            x = data(3, 4)
            accelerator.backward(model(x).sum())
            plain(x).sum().backward()
            check(base, plain, f"compiled, before prepare: {compile_first}")

    # A pass that fails before anything was sent is forgotten; the next one is whole.
    model, plain = twin()
    for trial in range(2):
        x = data(3, 4).requires_grad_()
        hidden = model[2](model[1](model[0](x)))
        if trial == 0:
            hidden.register_hook(lambda grad: 1 / 0)
            try:
                accelerator.backward(hidden.sum())
            except ZeroDivisionError:
                continue
            raise AssertionError
        accelerator.backward(hidden.sum())
        plain(x).sum().backward()
    check(model, plain, "after a failure")

    # The memory under a gradient exchanged; a whole-model conversion that changes nothing.
    model, plain = twin()
    for _ in range(2):
        x = data(3, 4)
        accelerator.backward(model(x).sum())
        plain(x).sum().backward()
        for one in (model, plain):
            for p in one.parameters():
                p.grad.data = p.grad.data.clone() * 0
            one.to(torch.float32)
    accelerator.backward(model(x).sum())
    plain(x).sum().backward()
    check(model, plain, "grad.data exchanged")

    # Two models, one trained through the other.
    first, plain_first = twin()
    second, plain_second = prepared(lambda: nn.Linear(2, 1))
    for _ in range(2):
        x = data(3, 4)
        accelerator.backward(second(first(x)).sum())
        plain_second(plain_first(x)).sum().backward()
        check(first, plain_first, "first of two")
        check(second, plain_second, "second of two")

    # Gradients leave the shared memory with the Accelerator.
    x = data(3, 4)
    accelerator.backward(first(x).sum())
    kept = [p.grad.clone() for p in first.parameters()]
    accelerator.free_memory()
    assert all(torch.equal(p.grad, k) for p, k in zip(first.parameters(), kept, strict=True))
    first(x).sum().backward()
    assert WORLD > 1


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_the_mean_whatever_torch_does(world: int) -> None:
    run_ranks(world, ordinary_and_odd_passes, timeout=110)


def refusals() -> None:
    import pytest
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    from paceline import Accelerator, DistributedDataParallelKwargs

    # A bucket for each gradient: the first one is sent while the pass goes on.
    small = DistributedDataParallelKwargs(bucket_cap_mb=1e-6)
    accelerator = Accelerator(kwargs_handlers=[small])

    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            x = checkpoint(self.layer, x, use_reentrant=True)
            return checkpoint(self.layer, x, use_reentrant=True)

    model = accelerator.prepare(Reused())
    x = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"'layer\..*use_reentrant=False"):
        accelerator.backward(model(x).sum())
    # What was sent is sent: the ranks cannot go on together.
    with pytest.raises(RuntimeError, match="an earlier backward pass failed half-way"):
        accelerator.backward(model(x).sum())
    accelerator.free_memory()

    embedding = accelerator.prepare(nn.Embedding(5, 2, sparse=True))
    with pytest.raises(NotImplementedError, match="the gradient of 'weight' is sparse.*sparse=Fal"):
        accelerator.backward(embedding(torch.tensor([1])).sum())
    accelerator.free_memory()

    converted = accelerator.prepare(nn.Linear(2, 2)).double()
    with pytest.raises(RuntimeError, match="'bias'.*float64.*expected.*float32.*before prepare"):
        accelerator.backward(converted(torch.ones(1, 2, dtype=torch.float64)).sum())
    accelerator.free_memory()

    meta = nn.Linear(2, 2, device="meta")
    with pytest.raises(NotImplementedError, match="no backend is known, got 'meta'"):
        accelerator.prepare_model(meta, device_placement=False)


def test_what_cannot_be_reduced_is_refused_by_name() -> None:
    run_ranks(2, refusals)


def arguments_of_the_binding() -> None:
    import pytest

    from paceline import _C, distributed

    distributed.init_process_group()
    native = distributed.default_group().native

    def make(params: object) -> _C.Reducer:
        return _C.Reducer(native, params, [], 1, 1, distributed.ReduceOp.AVG)

    for params, message in (
        (3, "expected a list or tuple of parameters"),
        ([(1, 2, 3)], r"expected tensors or pairs \(shape, dtype\)"),
        ([((1, 2), 99)], "dtype code 99 is unknown"),
        ([((1,) * 9, 6)], "has 9 dimensions"),
        ([((2,), 3)], "only floating tensors can require gradients"),
        (["x"], "expected a Tensor"),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            make(params)
    reducer = make((((2, 3), 6), ((), 7)))
    assert reducer.grad(0).shape == (2, 3)
    assert reducer.missing == [0, 1]
    for call in (reducer.ready, reducer.grad, lambda i: reducer.mark(i, True)):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            call(7)
    reducer.mark(1, True)
    assert reducer.marked == [1]
    reducer.fail()


def test_arguments_of_the_reducer() -> None:
    run_ranks(2, arguments_of_the_binding)
