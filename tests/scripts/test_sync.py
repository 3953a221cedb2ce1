# SPDX-License-Identifier: Apache-2.0
"""Accelerator on two and three processes: gradients and accumulation."""

from __future__ import annotations

import pytest

import harness
from scripts.sync_ranks import PRELUDE, run, same

# --- prepare ----------------------------------------------------------------------------------


def test_rank_zeros_parameters_buffers_and_shuffle_win() -> None:
    text = """\
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)
        self.register_buffer("offset", torch.randn(2))
    def forward(self, x):
        return self.inner(x)
accelerator = Accelerator()
torch.manual_seed(RANK)
model = Model()
mine = [p.tolist() for p in model.parameters()] + [model.offset.tolist()]
model, loader = accelerator.prepare(model, ranges(12, batch_size=2, shuffle=True))
now = [p.tolist() for p in model.parameters()] + [model.offset.tolist()]
assert (now == mine) == (RANK == 0)
order = [accelerator.gather(batch[0]).tolist() for batch in loader]
assert sorted(sum(order, [])) == list(range(12))
out([now, order])
"""
    same(3, text)


def test_models_that_differ_are_named_on_all_ranks() -> None:
    text = """\
with failing():
    Accelerator().prepare(torch.nn.Linear(3, 3 + RANK))
"""
    for rank in harness.run_ranks(2, PRELUDE + text):
        assert rank.exception["type"] == "CollectiveMismatchError"
        assert "weight [3, 3] float32 on rank 0" in rank.exception["text"]
        assert "weight [4, 3] float32 on rank 1" in rank.exception["text"]


def test_who_is_who() -> None:
    text = """\
a = Accelerator()
out([a.process_index, a.local_process_index, a.num_processes, a.is_main_process,
     a.is_last_process, str(a.distributed_type), str(a.device)])
with a.main_process_first():
    pass
with a.split_between_processes(list(range(5))) as mine:
    out(mine)
a.print("once")
"""
    outs = run(2, text)
    assert outs[0] == [[0, 0, 2, True, False, "MULTI_CPU", "cpu"], [0, 1, 2]]
    assert outs[1] == [[1, 1, 2, False, True, "MULTI_CPU", "cpu"], [3, 4]]


# --- gradients --------------------------------------------------------------------------------


def test_gradients_are_the_mean_and_the_same_bits() -> None:
    text = """\
accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=0.01)])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
xs = torch.randn(WORLD, 5, 64)
model(xs.view(-1, 64)).square().mean().backward()
whole = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model = accelerator.prepare(model)
accelerator.backward(model(xs[RANK]).square().mean())
for p, w in zip(model.parameters(), whole):
    assert (p.grad - w).abs().max().item() <= 1e-5 * w.abs().max().item()
out([p.grad.tolist() for p in model.parameters()])
"""
    same(2, text)
    same(3, text)


def test_no_sync_accumulates_here_and_reduces_with_the_next_pass() -> None:
    text = """\
accelerator = Accelerator()
model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
one = torch.tensor([[1.0 + RANK]])
with accelerator.no_sync(model):
    accelerator.backward(model(one).sum())
out(model.weight.grad.item())
accelerator.backward(model(10 * one).sum())
out(model.weight.grad.item())
"""
    outs = run(2, text)
    assert [o[0] for o in outs] == [1.0, 2.0]
    assert [o[1] for o in outs] == [16.5, 16.5]


@pytest.mark.parametrize("explicit", [True, False])
def test_parameters_that_were_not_used_never_hang(explicit: bool) -> None:
    text = f"""\
handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if {explicit} else None
accelerator = Accelerator(kwargs_handlers=handlers)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used = torch.nn.Linear(1, 1, bias=False)
        self.sometimes = torch.nn.Linear(1, 1, bias=False)
        self.never = torch.nn.Linear(1, 1, bias=False)
    def forward(self, x, both):
        y = self.used(x)
        return y + self.sometimes(x) if both else y
model = accelerator.prepare(Model())
x = torch.ones(1, 1)
def grads():
    return [p.grad if p.grad is None else p.grad.item() for p in model.parameters()]
for both in (RANK == 0, False, True):
    accelerator.backward(model(x, both).sum())
    out(grads())
    model.zero_grad()
"""
    assert same(2, text) == [[1.0, 0.5, None], [1.0, None, None], [1.0, 1.0, None]]


def test_model_that_ran_on_a_rank_without_a_gradient_never_hangs() -> None:
    text = """\
accelerator = Accelerator()
model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
elsewhere = torch.nn.Parameter(torch.ones(1, 1))
y = model(torch.ones(1, 1))
accelerator.backward((elsewhere if RANK else y).sum())
out(model.weight.grad.item())
"""
    assert same(2, text) == [0.5]


def test_plain_backward_reduces_too() -> None:
    text = """\
model = Accelerator().prepare(torch.nn.Linear(1, 1, bias=False))
loss = model(torch.full((1, 1), 1.0 + RANK)).sum()
loss.backward()
out(model.weight.grad.item())
"""
    assert same(2, text) == [1.5]


def test_a_model_that_only_rank_zero_runs_disturbs_no_other() -> None:
    text = """\
accelerator = Accelerator()
one, two = accelerator.prepare(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2)))
x = torch.full((1, 1), 1.0 + RANK)
for _ in range(3):
    if accelerator.is_main_process:
        two(x)
    accelerator.backward(one(x).sum())
    accelerator.backward(two(x).sum())
out([one.weight.grad.item(), two.weight.grad.item()])
"""
    assert same(2, text) == [[4.5, 4.5]]


def test_accumulation_equals_the_big_batch() -> None:
    text = """\
def train(batch, steps):
    torch.manual_seed(1)
    accelerator = Accelerator(gradient_accumulation_steps=steps)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    model = model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(48, 6).double()
    data = DataLoader(TensorDataset(x, x.square().sum(1, keepdim=True)), batch_size=batch)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward(F.mse_loss(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]
for a, b in zip(train(2, 4), train(8, 1)):
    assert (a - b).abs().max().item() <= 1e-12 * b.abs().max().item() + 1e-15
"""
    for n in (1, 2):
        run(n, text)


def test_two_models_and_two_optimizers() -> None:
    text = """\
accelerator = Accelerator(gradient_accumulation_steps=2)
one, two = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
o1, o2 = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (one, two))
one, two, o1, o2 = accelerator.prepare(one, two, o1, o2)
for i in range(4):
    with accelerator.accumulate(one, two):
        accelerator.backward((one(torch.ones(1, 1)) + two(torch.full((1, 1), 2.0 + RANK))).sum())
        if accelerator.sync_gradients:
            out([one.weight.grad.item(), two.weight.grad.item()])
        for o in (o1, o2):
            o.step()
            o.zero_grad()
out([one.weight.item(), two.weight.item()])
"""
    assert same(2, text)[:2] == [[1.0, 2.5], [1.0, 2.5]]


def test_bf16_gives_the_same_bits_on_all_ranks() -> None:
    text = """\
accelerator = Accelerator(mixed_precision="bf16")
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)
losses = []
x, y = torch.randn(8, 32), torch.randint(0, 4, (8,))
for _ in range(10):
    outputs = model(x)
    assert outputs.dtype == torch.float32
    loss = F.cross_entropy(outputs, y)
    losses.append(loss.item())
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
assert losses[-1] < losses[0]
out([p.tolist() for p in model.parameters()])
"""
    same(2, text)


def test_copy_of_a_prepared_model_and_a_second_prepare() -> None:
    text = """\
import copy
first = Accelerator()
model = first.prepare(torch.nn.Linear(2, 2))
x = torch.full((1, 2), 1.0 + RANK)
first.backward(model(x).sum())
twin = copy.deepcopy(model)
twin(x).sum().backward()
assert twin.weight.grad is not model.weight.grad
assert model.weight.grad.tolist() == [[1.5, 1.5], [1.5, 1.5]]
first.free_memory()
assert model.weight.grad.tolist() == [[1.5, 1.5], [1.5, 1.5]], "kept, in memory of its own"
model.zero_grad()
second = Accelerator()
model = second.prepare(model)
second.backward(model(x).sum())
out(model.weight.grad.tolist())
"""
    assert same(2, text) == [[[1.5, 1.5], [1.5, 1.5]]]


def test_two_models_that_share_a_layer() -> None:
    text = """\
accelerator = Accelerator()
trunk = torch.nn.Linear(1, 1, bias=False)
heads = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
one, two = accelerator.prepare(*(torch.nn.Sequential(trunk, head) for head in heads))
with torch.no_grad():
    for p in (trunk.weight, heads[0].weight, heads[1].weight):
        p.fill_(1.0)
x = torch.full((1, 1), 1.0 + RANK)
accelerator.backward((one(x) + 2 * two(x)).sum())
out([trunk.weight.grad.item(), heads[0].weight.grad.item(), heads[1].weight.grad.item()])
"""
    assert same(2, text) == [[4.5, 1.5, 3.0]]


def test_the_accelerator_that_prepared_last_has_the_model() -> None:
    text = """\
model = torch.nn.Linear(1, 1, bias=False)
first = Accelerator(mixed_precision="bf16")
first.prepare(model)
second = Accelerator()
second.prepare(model)
x = torch.full((1, 1), 1.0 + RANK)
assert model(x).tolist() == (x * model.weight.item()).tolist(), "no longer rounded to bf16"
second.backward(model(x).sum())
out(model.weight.grad.item())
"""
    assert same(2, text) == [1.5]


@pytest.mark.parametrize("copied", [True, False])
def test_buffers_follow_rank_zero_in_training(copied: bool) -> None:
    text = f"""\
class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(1))
    def forward(self, x):
        return self.inner(x) + self.seen.sum()
accelerator = Accelerator(
    kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers={copied})])
model = accelerator.prepare(Counts())
model.seen.fill_(10.0 + RANK)
accelerator.backward(model(torch.ones(1, 1)).sum())
out(model.seen.item())
"""
    assert [o[0] for o in run(2, text)] == ([10.0, 10.0] if copied else [10.0, 11.0])


def test_timeout_of_the_group_is_the_scripts() -> None:
    text = """\
from datetime import timedelta
handler = InitProcessGroupKwargs(timeout=timedelta(seconds=0.5))
accelerator = Accelerator(kwargs_handlers=[handler])
if RANK == 0:
    with failing():
        accelerator.wait_for_everyone()
import time
time.sleep(1.5)
import os
os._exit(0)
"""
    ranks = harness.run_ranks(2, PRELUDE + text)
    assert "CollectiveTimeoutError" in ranks[0].exception["kinds"]
