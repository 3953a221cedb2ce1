# SPDX-License-Identifier: Apache-2.0
"""Accelerator on two and three processes: gathering, loaders, whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from scripts.sync_ranks import PRELUDE, run, same

EXAMPLES = str(Path(__file__).parents[2] / "examples")

# --- gather and reduce ------------------------------------------------------------------------


def test_gather_and_reduce() -> None:
    text = """\
a = Accelerator()
nested = {"x": [torch.full((1, 2), RANK)], "y": (torch.tensor(RANK + 0.5),)}
got = a.gather(nested)
out([got["x"][0].tolist(), got["y"][0].tolist()])
out(a.gather(torch.tensor([RANK == 0])).tolist())
t = torch.tensor([float(RANK), 1.0])
results = a.reduce(t), a.reduce(t, "mean"), reduce(t), a.reduce(t, "max")
out([r.tolist() for r in results])
assert t.tolist() == [RANK, 1.0]
out(a.pad_across_processes(torch.ones(RANK + 1), pad_index=-1).tolist())
out(broadcast(torch.tensor([RANK]), from_process=1).tolist())
out([gather_object(["a", RANK]), gather_object("ab"), gather_object({"k": RANK})])
box = [RANK, "x"]
broadcast_object_list(box, 1)
out(box)
"""
    outs = run(2, text)
    pads = [o.pop(3) for o in outs]
    assert pads == [[1.0, -1.0], [1.0, 1.0]]
    assert outs[0] == outs[1]
    assert outs[0] == [
        [[[0, 0], [1, 1]], [0.5, 1.5]],
        [True, False],
        [[1.0, 2.0], [0.5, 1.0], [0.5, 1.0], [1.0, 1.0]],
        [1],
        [["a", 0, "a", 1], ["ab", "ab"], [{"k": 0}, {"k": 1}]],
        [1, "x"],
    ]


def test_gather_of_unequal_shapes_is_an_error_and_no_hang() -> None:
    text = """\
a = Accelerator()
with failing():
    a.gather(torch.ones(RANK + 1))
"""
    for rank in harness.run_ranks(2, PRELUDE + text):
        assert rank.exception["type"] == "CollectiveMismatchError"
        assert "script.py" in rank.exception["text"], "the user's line, not ours"


# --- loaders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "options", "config", "expected"),
    [
        (10, "batch_size=4", "", [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]),
        (3, "batch_size=4", "", [[0, 1, 2]]),
        (9, "batch_size=2, drop_last=True", "", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, "batch_size=4", "split_batches=True", [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (5, "batch_size=2", "shard='samples'", [[0, 2, 1, 3], [4]]),
        (7, "batch_size=2", "even_batches=False", [[0, 1, 2, 3], [4, 5, 6]]),
    ],
)
def test_gather_for_metrics_gives_each_sample_once(
    n: int, options: str, config: str, expected: list[list[int]]
) -> None:
    text = f"""\
a = Accelerator(dataloader_config=DataLoaderConfiguration({config}))
loader = a.prepare(ranges({n}, {options}))
for batch in loader:
    out(a.gather_for_metrics(batch[0]).tolist())
assert len(loader) == {len(expected)}
"""
    assert same(2, text) == expected


def test_gather_for_metrics_of_scalars_and_objects() -> None:
    text = """\
a = Accelerator()
for batch in a.prepare(ranges(9, batch_size=4)):
    out([a.gather_for_metrics(batch[0].float().mean()).tolist(),
         a.gather_for_metrics([f"s{i}" for i in batch[0].tolist()])])
"""
    # The last round holds one real sample, on rank 0: the other rank's scalar is all repeats.
    assert same(2, text) == [
        [[1.5, 5.5], [f"s{i}" for i in range(8)]],
        [[pytest.approx(3.5 - 0.75)], ["s8"]],
    ]


def test_distributed_sampler_is_not_shared_out_twice() -> None:
    text = """\
a = Accelerator()
data = TensorDataset(torch.arange(10))
sampler = DistributedSampler(data, num_replicas=WORLD, rank=RANK, shuffle=False)
loader = a.prepare(DataLoader(data, batch_size=2, sampler=sampler))
out([batch[0].tolist() for batch in loader])
seen = sum((a.gather_for_metrics(batch[0]).tolist() for batch in loader), [])
assert sorted(seen) == list(range(10))
"""
    outs = run(2, text)
    assert outs == [[[[0, 2], [4, 6], [8]]], [[[1, 3], [5, 7], [9]]]]


def test_sampler_of_ones_own_is_drawn_on_rank_zero() -> None:
    text = """\
import random
class Mine(Sampler):
    def __init__(self): pass
    def __iter__(self): return iter(random.sample(range(12), 8))
    def __len__(self): return 8
a = Accelerator()
loader = a.prepare(ranges(12, batch_size=2, sampler=Mine()))
seen = [a.gather(batch[0]).tolist() for batch in loader]
assert len(set(sum(seen, []))) == 8
out(seen)
"""
    same(2, text)


def test_last_batch_ends_the_window_on_all_ranks() -> None:
    text = """\
a = Accelerator(gradient_accumulation_steps=4)
model, loader = a.prepare(torch.nn.Linear(1, 1), ranges(12, batch_size=1, shuffle=True))
for epoch in range(2):
    for batch in loader:
        with a.accumulate(model):
            a.backward(model(batch[0].float().view(1, 1)).sum())
            out(a.sync_gradients)
"""
    assert same(2, text) == [False, False, False, True, False, True] * 2


# --- whole runs -------------------------------------------------------------------------------

PARITY = """\
import hashlib, sys
from rankside import ARGS
sys.path.insert(0, ARGS["examples"])
from gpt import GPT, GPTConfig, language_loss
set_seed(0)
config = GPTConfig(layers=2, heads=2, width=32, context=16, vocab=64)
model = GPT(config)
data = torch.randint(0, 64, (64, 17))
if ARGS["dtype"] == "float64":
    model = model.double()
accelerator = Accelerator()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
loader = DataLoader(TensorDataset(data), batch_size=8 // WORLD, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
assert model.training
step = 0
while step < ARGS["steps"]:
    for (batch,) in loader:
        if step == ARGS["steps"]:
            break
        loss = language_loss(model(batch[:, :-1]), batch[:, 1:])
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bits = hashlib.sha256()
        for p in model.parameters():
            bits.update(p.detach().numpy().tobytes())
        out([accelerator.reduce(loss.detach(), "mean").item(), bits.hexdigest()])
        step += 1
"""


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_one_process_and_two_train_the_same_model(dtype: str, bound: float) -> None:
    # lr 3e-4 with clipping: beyond that training is chaotic, and rounding alone shows.
    args = {"dtype": dtype, "steps": 50, "examples": EXAMPLES}
    alone = harness.run_ranks(1, PRELUDE + PARITY, args=args, timeout=90)[0].outs
    pair = harness.run_ranks(2, PRELUDE + PARITY, args=args, timeout=90)
    assert len(alone) == 50
    assert pair[0].outs == pair[1].outs, "the same bits on both ranks after every step"
    for (one, _), (two, _) in zip(alone, pair[0].outs, strict=True):
        assert abs(one - two) <= bound * abs(one)
    assert alone[-1][0] < alone[0][0]


REPEAT = """\
import hashlib
def train(bucket_cap_mb):
    set_seed(7)
    accelerator = Accelerator(
        gradient_accumulation_steps=2,
        kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=bucket_cap_mb)],
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = TensorDataset(torch.randn(120, 20), torch.randint(0, 3, (120,)))
    loader = DataLoader(data, batch_size=5, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    accelerator.free_memory()
    whole = hashlib.sha256()
    for p in model.parameters():
        whole.update(p.detach().numpy().tobytes())
    return whole.hexdigest()
digests = [train(25), train(25), train(0.002)]
assert len(set(digests)) == 1, "neither repeating nor the size of the buckets changes a bit"
out(digests[0])
"""


def test_seeded_run_repeats_bit_for_bit() -> None:
    for n in (2, 3):
        first, again = (same(n, REPEAT) for _ in range(2))
        assert first == again
