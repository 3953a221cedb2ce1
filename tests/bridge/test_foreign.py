# SPDX-License-Identifier: Apache-2.0
"""What Accelerate itself saved is loaded by the bridge, and the run goes on with the same bits."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness import run_ranks

pytest.importorskip("torch")
pytest.importorskip("accelerate")


def half_a_run() -> None:
    """Accelerate trains and saves, then goes on; paceline loads, then goes on."""
    import importlib
    import random

    import numpy as np
    import torch
    from torch import nn

    from bridge import nets
    from rankside import ARGS, RANK, out

    library = importlib.import_module(ARGS["library"])
    theirs = ARGS["library"] == "accelerate"
    assert library.__name__ == ARGS["library"]
    accelerator = library.Accelerator(cpu=True, mixed_precision="bf16")
    importlib.import_module(ARGS["library"] + ".utils").set_seed(3 + RANK)
    torch.manual_seed(7 if theirs else 8)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, decay], [2])
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)

    def train(steps):
        for step in steps:
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(10 * step + RANK))
            accelerator.backward(model(x).square().mean() * (1 + random.random()))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    if theirs:
        train(range(3))
        accelerator.save_state(ARGS["folder"])
    else:
        accelerator.load_state(ARGS["folder"])
    train(range(3, 6))
    named = accelerator.unwrap_model(model).state_dict().items()
    drawn = [torch.rand(1).item(), random.random(), float(np.random.random_sample())]  # noqa: NPY002 (the generator that scripts seed)
    out({"weights": {k: v.tolist() for k, v in named}, "drawn": drawn})
    out({"lr": schedule.get_last_lr()})
    nets.leave_at_exit()


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_of_accelerates_goes_on_bit_for_bit(tmp_path: Path, world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = []
    for library in ("accelerate", "paceline"):
        ranks = run_ranks(
            world,
            half_a_run,
            args={"library": library, "folder": str(tmp_path / "saved")},
            env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
            with_torch=True,
            timeout=100,
        )
        ends.append([rank.outs for rank in ranks])
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"optimizer.bin", "scheduler.bin", "random_states_0.pkl"} <= names
    assert ends[0] == ends[1]
