# SPDX-License-Identifier: Apache-2.0
"""Models of transformers and PEFT in the loops that people write for them."""

from __future__ import annotations

import pytest

from harness import run_ranks

pytest.importorskip("torch")
pytest.importorskip("transformers")


def four_lines() -> None:
    import torch
    from torch.utils.data import DataLoader
    from transformers import get_scheduler

    from bridge import nets
    from paceline import Accelerator
    from paceline.scheduler import AcceleratedScheduler

    accelerator = Accelerator()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (24, 8), generator=generator)
    rows = [{"input_ids": row, "labels": row[0] % 3} for row in ids]
    model = nets.fresh("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(rows, batch_size=4, shuffle=True)
    steps = 4 * len(loader)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    assert type(schedule) is AcceleratedScheduler
    first = last = None
    for _ in range(4):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            last = accelerator.reduce(loss.detach(), "mean").item()
            first = last if first is None else first
    assert schedule.get_last_lr() == [0.0], schedule.get_last_lr()  # the schedule ends with the run
    assert last < first


def policy_gradient() -> None:
    import torch

    from bridge import nets
    from paceline import Accelerator
    from paceline.utils import gather_object, set_seed
    from rankside import RANK, WORLD

    accelerator = Accelerator()
    set_seed(1, device_specific=True)
    model = nets.fresh("qwen3")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(RANK)
    for _ in range(2):
        prompts = torch.randint(0, 50, (3, 4))
        with torch.no_grad():
            answers = accelerator.unwrap_model(model).generate(
                prompts, max_new_tokens=4, do_sample=True, pad_token_id=0, eos_token_id=None
            )
        rewards = (answers[:, 4:] % 2).float().mean(1)
        everyone = gather_object(rewards.tolist())
        assert len(everyone) == 3 * WORLD
        mean = sum(everyone) / len(everyone)
        logits = model(answers[:, :-1]).logits
        chosen = logits.log_softmax(-1).gather(-1, answers[:, 1:, None])[..., 0]
        loss = -((rewards - mean)[:, None] * chosen[:, 3:]).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        both = accelerator.gather(p.detach().flatten()[None])
        assert all(torch.equal(row, both[0]) for row in both), f"{name} drifted"


def drifting() -> None:
    import torch

    from paceline import Accelerator
    from paceline.utils import gather_object
    from rankside import failing, mark

    accelerator = Accelerator()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    rewards = gather_object([1.0])
    mark("apart")
    with failing():
        if accelerator.is_main_process:  # the mistake: the others do not train
            accelerator.backward(model(torch.ones(len(rewards), 4)).sum())
            optimizer.step()
        accelerator.wait_for_everyone()


def test_training_on_the_main_process_only_is_told_at_once() -> None:
    for rank in run_ranks(2, drifting, with_torch=True):
        error = rank.exception
        assert "CollectiveMismatchError" in error["kinds"], error
        assert "every rank" in error["text"], error["text"]
        took = error["at"] - rank.marks["apart"]
        print(f"told after {1e3 * took:.0f} ms")
        assert took < 5 * 0.2  # RELIABILITY.md, B1: 200 ms on a quiet machine


def low_rank() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from bridge import nets
    from paceline import Accelerator
    from rankside import RANK

    accelerator = Accelerator()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(nets.fresh("qwen3"), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(model.parameters()))
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    before = [p.detach().clone() for p in trained]
    for step in nets.steps_of("qwen3", RANK, count=2):
        accelerator.backward(step(model))
        optimizer.step()
        optimizer.zero_grad()
    assert not all(torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    for p in trained:
        both = accelerator.gather(p.detach().flatten()[None])
        assert torch.equal(both[0], both[1])


def every_loop() -> None:
    """One after the other: to import transformers takes longer than all of them."""
    import importlib.util

    from bridge import test_transformers as loops
    from rankside import mark

    loops.four_lines()
    mark("the four-line example with get_scheduler")
    loops.policy_gradient()
    mark("a policy gradient keeps the ranks equal")
    if importlib.util.find_spec("peft"):
        loops.low_rank()
        mark("LoRA trains what is not frozen")


def test_loops_that_people_write() -> None:
    run_ranks(2, every_loop, timeout=110, with_torch=True)
