# SPDX-License-Identifier: Apache-2.0
"""The Accelerator on several ranks with a GPU each, the virtual one: what goes between them, and
what becomes of a job when one of them goes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import vcuda
from harness import Break, Result, run_ranks

HEAD = """
import numpy as np
import paceline as pl
import paceline.distributed
from paceline import nn, optim
from paceline.accelerator import Accelerator
from paceline.utils.data import DataLoader, TensorDataset
from rankside import ARGS, RANK, WORLD, failing, mark, out

accelerator = Accelerator()
device = accelerator.device
assert str(device) == f"cuda:{RANK}", device

def on_gpu(array):
    return pl.tensor(np.asarray(array)).to(device)
"""


def on_gpus(world: int, body: str, **options: object) -> list[Result]:
    """Run a script on ranks that have a virtual GPU each."""
    env = vcuda.variables(worker=True, devices=world)
    return run_ranks(world, HEAD + body, env=env, timeout=60, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 4])
def test_what_goes_between_ranks(world: int) -> None:
    body = """
x = on_gpu(np.arange(6, dtype="float32").reshape(2, 3) + RANK)
everything = [np.arange(6, dtype="float32").reshape(2, 3) + r for r in range(WORLD)]
for name, got, want in [
    ("gather", accelerator.gather(x), np.concatenate(everything)),
    ("sum", accelerator.reduce(x), sum(everything)),
    ("mean", accelerator.reduce(x, "mean"), sum(everything) / WORLD),
]:
    assert str(got.device) == str(device), name
    np.testing.assert_allclose(got.cpu().numpy(), want, err_msg=name)
nested = accelerator.gather({"loss": on_gpu(np.float32(RANK)), "ids": [on_gpu([RANK, 7])]})
assert nested["loss"].cpu().numpy().tolist() == list(range(WORLD))
assert nested["ids"][0].cpu().numpy().tolist() == [n for r in range(WORLD) for n in (r, 7)]

uneven = on_gpu(np.full((RANK + 1, 2), RANK, dtype="int64"))
padded = accelerator.pad_across_processes(uneven, pad_index=-1)
assert tuple(padded.shape) == (WORLD, 2) and str(padded.device) == str(device)
rows = accelerator.gather(padded).cpu().numpy()
assert rows[:WORLD].tolist() == [[0, 0]] + [[-1, -1]] * (WORLD - 1)

from paceline.utils import broadcast
np.testing.assert_array_equal(
    broadcast(x, from_process=WORLD - 1).cpu().numpy(), everything[-1])

flags = accelerator.gather(on_gpu([RANK == 0, True]))
assert flags.cpu().numpy().tolist() == [n for r in range(WORLD) for n in (r == 0, True)]

data = TensorDataset(pl.arange(2 * WORLD + 1))
loader = accelerator.prepare(DataLoader(data, batch_size=2))
seen = []
for (batch,) in loader:
    assert str(batch.device) == str(device)
    seen += accelerator.gather_for_metrics(batch).cpu().numpy().tolist()
assert seen == list(range(2 * WORLD + 1)), seen

if RANK == 1:
    accelerator.set_trigger()
assert accelerator.check_trigger()
accelerator.end_training()
"""
    on_gpus(world, body)


def test_averaging_every_few_steps() -> None:
    body = """
from paceline.local_sgd import LocalSGD

model = accelerator.prepare(nn.Linear(4, 1))
optimizer = accelerator.prepare(optim.SGD(model.parameters(), lr=0.1))
with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=3, enabled=True) as local:
    for step in range(6):
        loss = model(on_gpu(np.full((2, 4), RANK + step, dtype="float32"))).sum()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        local.step()
        mine = next(iter(model.parameters())).detach()
        rows = accelerator.gather(mine).cpu().numpy()
        assert (rows == rows[0]).all() == (step % 3 == 2), (step, rows)
accelerator.end_training()
"""
    on_gpus(2, body)


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path: Path) -> None:
    body = """
pl.manual_seed(3)
model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.2), nn.Linear(32, 2))
optimizer = optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)

def train(steps):
    for step in steps:
        rng = np.random.default_rng([step, RANK])
        x = on_gpu(rng.standard_normal((4, 8)).astype("float32"))
        accelerator.backward(model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return np.concatenate([p.detach().cpu().numpy().ravel() for p in model.parameters()])

train(range(3))
accelerator.save_state(ARGS["folder"])
straight = train(range(3, 6))
accelerator.load_state(ARGS["folder"])
again = train(range(3, 6))
np.testing.assert_array_equal(straight, again)
everyone = accelerator.gather(on_gpu(again)).cpu().numpy().reshape(WORLD, -1)
assert (everyone == everyone[0]).all()
accelerator.end_training()
"""
    on_gpus(2, body, args={"folder": str(tmp_path / "state")})


TRAINING = """
import time
model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2))
optimizer = optim.SGD(model.parameters(), lr=1e-3)
model, optimizer = accelerator.prepare(model, optimizer)
x = on_gpu(np.ones((4, 8), "float32"))
with failing():
    for step in range(100000):
        if step == 5:
            mark("training")
        loss = model(x).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 3:
            loss.item()
"""


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_killed_while_training_is_named_by_all(world: int) -> None:
    results = on_gpus(world, TRAINING, breaks=[Break(0, "training", delay_s=0.2)], expect={0: -9})
    for result in results[1:]:
        error = result.exception
        assert error["type"] == "PeerLostError"
        assert error["dead_ranks"] == [0]
        assert error["at"] - results[0].broken_at < 1.0  # promised: 0.2 s


def test_a_rank_that_raises_is_named_by_all() -> None:
    body = TRAINING.replace(
        "loss = model(x)", "assert RANK or step < 9, 'bad batch'; loss = model(x)"
    )
    body = body.replace(
        "with failing():",
        "import contextlib\nwith failing() if RANK else contextlib.nullcontext():",
    )
    error = on_gpus(2, body, expect={0: 1})[1].exception
    assert error["type"] == "RemoteError"
    assert (error["rank"], error["remote_type"]) == (0, "AssertionError")
    assert "bad batch" in error["remote_message"]


def test_control_c_ends_a_wait_for_a_stopped_rank() -> None:
    results = on_gpus(
        2,
        TRAINING,
        breaks=[
            Break(1, "training", signal.SIGSTOP, delay_s=0.1),
            Break(0, "training", signal.SIGINT, delay_s=0.5),
            Break(1, "training", signal.SIGKILL, delay_s=0.3),
        ],
        expect={1: -9},
    )
    error = results[0].exception
    assert error["type"] == "KeyboardInterrupt"
    assert error["at"] - results[0].broken_at < 0.5  # promised: 0.1 s


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_that_overflows_on_one_rank_is_skipped_by_all(precision: str) -> None:
    body = """
accelerator = Accelerator(mixed_precision=ARGS["precision"])
pl.manual_seed(1)
model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 2))
optimizer = optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)
skipped, norms = [], []
for step in range(5):
    x = np.random.default_rng([step, RANK]).standard_normal((4, 8)).astype("float32")
    if step == 2 and RANK == 1 and ARGS["precision"] == "fp16":
        x[:] = np.inf
    accelerator.backward(model(on_gpu(x)).float().square().mean())
    norm = accelerator.clip_grad_norm_(model.parameters(), 0.5)
    if step != 2:
        norms.append(float(norm))
    optimizer.step()
    skipped.append(bool(accelerator.optimizer_step_was_skipped))
    optimizer.zero_grad()
flat = np.concatenate([p.detach().cpu().numpy().ravel() for p in model.parameters()])
assert np.isfinite(flat).all()
out([skipped, norms, flat.tolist()])
accelerator.end_training()
"""
    first, second = (r.outs[0] for r in on_gpus(2, body, args={"precision": precision}))
    assert first == second
    assert first[0] == [False, False, precision == "fp16", False, False]


def test_ranks_with_fewer_batches() -> None:
    body = """
from paceline.utils import DataLoaderConfiguration
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))
model = nn.Linear(4, 1)
optimizer = optim.AdamW(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
with accelerator.join_uneven_inputs([model]):
    for step in range(3 + 2 * RANK):
        accelerator.backward(model(on_gpu(np.full((2, 4), step, dtype="float32"))).mean())
        optimizer.step()
        optimizer.zero_grad()
state = next(iter(optimizer.state_dict()["state"].values()))
for tensor in [next(iter(model.parameters())).detach(), state["exp_avg"]]:
    assert str(tensor.device) == str(device)
    rows = accelerator.gather(tensor).cpu().numpy()
    assert (rows == rows[0]).all(), rows
accelerator.end_training()
"""
    on_gpus(2, body)


def test_an_end_without_end_training_is_silent() -> None:
    body = """
model, x = nn.Linear(4, 4), on_gpu(np.ones((2, 4), "float32"))
optimizer = optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
for _ in range(4):
    accelerator.backward(model(x).mean())
    optimizer.step()
    optimizer.zero_grad()
work = pl.distributed.all_reduce(x, async_op=True)  # and nobody waits for it
"""
    for result in on_gpus(4, body):
        assert result.stderr == ""
