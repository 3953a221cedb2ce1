# SPDX-License-Identifier: Apache-2.0
"""E5 and E6 of the reliability promises: a killed run that goes on is the run that never stopped.

A run is killed with SIGKILL some steps after a save, in the middle of an epoch and of an
accumulation window; a new process loads the checkpoint and goes on. Losses, parameters, optimizer,
learning rate and random states are compared bit for bit with a run that was left alone. The loop
has no other code for it than ``load_state``.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from ways import run_ways


def body() -> None:
    import hashlib
    import os
    import random
    import signal

    import numpy as np

    from paceline import Accelerator
    from paceline.utils import set_seed
    from rankside import ARGS, RANK, out
    from ways import torch

    set_seed(ARGS["seed"], device_specific=True)
    accelerator = Accelerator(
        gradient_accumulation_steps=ARGS["accumulation"], mixed_precision=ARGS["precision"]
    )

    def numpy_draw() -> float:
        return np.random.random()  # noqa: NPY002 (the generator whose state is saved)

    class Noisy(torch.utils.data.Dataset):
        def __init__(self) -> None:
            grid = np.random.default_rng(3).standard_normal((ARGS["samples"], 6))
            self.x = torch.tensor(grid.astype("float32"))

        def __len__(self) -> int:
            return ARGS["samples"]

        def __getitem__(self, at: int) -> object:
            x = self.x[at]
            return x + 0.01 * torch.rand(6) if ARGS["noise"] else x

    class Running(torch.nn.Module):
        """Subtracts a mean that it keeps in a buffer, as batch normalisation does."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x: object) -> object:
            with torch.no_grad():
                self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean(0))
            return x - self.mean

    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), Running(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)
    loader = torch.utils.data.DataLoader(
        Noisy(), batch_size=3, shuffle=ARGS["shuffle"], num_workers=ARGS["workers"]
    )
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

    class Progress:
        step = 0

        def state_dict(self) -> dict:
            return {"step": self.step}

        def load_state_dict(self, state: dict) -> None:
            self.step = state["step"]

    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if ARGS["load"]:
        accelerator.load_state(ARGS["dir"])
    losses = {}
    while progress.step < ARGS["steps"]:
        for x in loader:
            with accelerator.accumulate(model):
                drawn = random.random() + numpy_draw()
                loss = (model(x) ** 2).mean() * (1 + 0.1 * drawn)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            progress.step += 1
            losses[progress.step] = float(loss.item()).hex()
            if progress.step == ARGS["save_at"] and not ARGS["load"]:
                accelerator.save_state(ARGS["dir"])
            if progress.step == ARGS["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if progress.step == ARGS["steps"]:
                break
    state = [
        [p.detach().tolist() for p in model.state_dict().values()],
        [[k, v.tolist()] for s in optimizer.state_dict()["state"].values() for k, v in s.items()],
        scheduler.state_dict()["last_epoch"],
        optimizer.param_groups[0]["lr"],
        [random.random(), numpy_draw(), torch.rand(3).tolist()],
        loader.iteration,
        RANK,
    ]
    out({"losses": losses, "state": hashlib.sha256(repr(state).encode()).hexdigest()})
    accelerator.end_training()


def _case(seed: int) -> dict[str, Any]:
    """What a seed stands for: every feature is met by several of them."""
    rng = random.Random(seed)
    steps = 26
    save_at = rng.randrange(1, steps - 4)
    return {
        "seed": seed,
        "world": 1 + seed % 2,
        "accumulation": (3, 1)[seed // 2 % 4 == 3],
        "precision": ("no", "bf16", "no", "fp16")[seed // 2 % 4],
        "workers": (0, 2)[seed // 4 % 2],
        "shuffle": seed % 5 != 4,
        "noise": seed % 3 != 2,
        "samples": rng.choice([25, 38]),
        "steps": steps,
        "save_at": save_at,
        "kill_at": save_at + rng.randrange(1, 4),
    }


def _check(way: str, case: dict[str, Any], folder: Path) -> None:
    world = case["world"]

    def run(load: bool, kill_at: int, save_at: int) -> Any:
        args = {**case, "load": load, "kill_at": kill_at, "save_at": save_at, "dir": str(folder)}
        codes = {rank: -signal.SIGKILL for rank in range(world)} if kill_at else {}
        return run_ways(way, world, body, args=args, expect=codes, timeout=60)

    alone = run(False, 0, 0)
    run(False, case["kill_at"], case["save_at"])
    resumed = run(True, 0, 0)
    for one, other in zip(alone, resumed, strict=True):
        whole, rest = one.outs[0], other.outs[0]
        begin = case["save_at"] + 1
        wanted = {k: v for k, v in whole["losses"].items() if int(k) >= begin}
        assert len(wanted) == case["steps"] - case["save_at"]
        assert rest["losses"] == wanted, case
        assert rest["state"] == whole["state"], case


# What the short run meets too: both worlds, accumulation, both precisions, both kinds of workers.
SAMPLE = (0, 1, 5, 6)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.slow]) for n in range(20)],
)
def test_sec3_row_9_resume_is_the_same_run(way: str, seed: int, tmp_path: Path) -> None:
    _check(way, _case(seed), tmp_path / "c")
