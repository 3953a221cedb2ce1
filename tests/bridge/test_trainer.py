# SPDX-License-Identifier: Apache-2.0
"""transformers' own ``Trainer``, which makes an Accelerator itself, over paceline's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import harness
from harness import run_ranks

needs_transformers = pytest.mark.skipif(
    not (importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")),
    reason="needs transformers, and that Accelerate is installed, which its Trainer asks for",
)


def trained_each() -> None:
    from paceline.compat import install

    install(["transformers"])
    from bridge import test_trainer
    from rankside import ARGS, mark

    for kind in ARGS["kinds"]:
        test_trainer.trained(kind, f"{ARGS['folder']}/{kind}")
        mark(kind)


def trained(kind: str, folder: str) -> None:
    """Trainer on each rank, and a plain loop over the batches of all ranks: the same bits."""
    import copy

    import torch
    import transformers
    from torch.nn.functional import cross_entropy
    from transformers import Trainer, TrainingArguments, trainer

    from bridge import nets
    from paceline.utils import gather_object
    from rankside import WORLD

    transformers.logging.set_verbosity_error()
    assert trainer.Accelerator.__module__.startswith("paceline")
    model = nets.fresh(kind)
    plain = [copy.deepcopy(model) for _ in range(WORLD)]
    ids = torch.randint(0, 50, (24, 8), generator=torch.Generator().manual_seed(1))
    ids[::3, 5:] = -100
    rows = [{"input_ids": row.clamp(min=0), "labels": row} for row in ids]

    def summed(model, batch):  # over the labels that are predicted
        logits = model(input_ids=batch.clamp(min=0)).logits.float()
        wanted = torch.nn.functional.pad(batch, (0, 1), value=-100)[:, 1:].reshape(-1)
        return cross_entropy(logits.reshape(-1, 50), wanted, reduction="sum", ignore_index=-100)

    # Trainer counts only labels that are predicted where it knows the model by its name.
    first = 1 if type(model).__name__.endswith("ForCausalLM") else 0

    def count(labels):
        return (labels[..., first:] != -100).sum()

    def parts(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step)

    def arguments(**options):
        return TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            max_grad_norm=0.5,
            train_sampling_strategy="sequential",
            save_steps=2,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )

    run = Trainer(model, arguments(), train_dataset=rows, eval_dataset=rows[:7],
                  optimizers=parts(model))  # fmt: skip
    run.train()

    # Two batches of two rows are a step of a rank; rank r has every WORLD-th batch.
    steppers = [parts(one) for one in plain]
    losses = []
    at = 0
    for _ in range(4):
        if at + 4 * WORLD > len(ids):
            at = 0  # the next epoch
        part = ids[at : at + 4 * WORLD].reshape(2, WORLD, 2, 8)
        at += 4 * WORLD
        items = count(part)
        total = 0.0
        for micro in part:
            for one, batch in zip(plain, micro, strict=True):
                loss = summed(one, batch)
                (loss / items * WORLD).backward()
                total += (loss / items).item()
        losses.append(total)
        for together in zip(*(one.parameters() for one in plain), strict=True):
            mean = sum(p.grad for p in together) / WORLD
            for p in together:
                p.grad = mean.clone()
        for one, (optimizer, schedule) in zip(plain, steppers, strict=True):
            torch.nn.utils.clip_grad_norm_(one.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    wrong = nets.differences(dict(model.state_dict()), dict(plain[0].state_dict()))
    assert not wrong, wrong
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(losses), rtol=1e-5, atol=1e-6)

    # Every sample is evaluated once, though they do not come out even.
    assert run.predict(rows[:7]).predictions.shape[0] == 7
    found = run.evaluate()["eval_loss"]
    assert len(set(gather_object([found]))) == 1
    if WORLD == 1:
        parts_of = ids[:7].split(2)
        with torch.no_grad():
            each = [summed(plain[0], part) / count(part) * len(part) for part in parts_of]
        torch.testing.assert_close(found, sum(each).item() / 7, rtol=1e-5, atol=0)

    # Taken up from the Trainer's own checkpoint.
    again = nets.fresh(kind)
    second = Trainer(again, arguments(), train_dataset=rows, optimizers=parts(again))
    second.train(resume_from_checkpoint=folder + "/checkpoint-2")
    assert not nets.differences(dict(again.state_dict()), dict(model.state_dict()))


@needs_transformers
@pytest.mark.parametrize("world", [1, 2])
def test_trainer_has_the_bits_of_a_plain_loop(tmp_path: Path, world: int) -> None:
    args = {"folder": str(tmp_path), "kinds": ["gpt2", "qwen3"]}
    run_ranks(world, trained_each, args=args, with_torch=True, timeout=110)


SCRIPT = """\
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, trainer

config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8,
                    bos_token_id=0, eos_token_id=0)
rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
arguments = TrainingArguments("out", per_device_train_batch_size=2, max_steps=2, use_cpu=True,
                              report_to=[], disable_tqdm=True, save_strategy="no")
run = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows)
print("trained on", run.accelerator.num_processes, "by", type(run.accelerator).__module__,
      "over", run.train().global_step, "steps")
"""


@needs_transformers
def test_a_script_with_a_trainer_is_launched_unedited(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ("-m", "paceline.commands.launch", "--num_processes", "2", "--as_accelerate")
    done = harness.run_program(*command, "script.py", cwd=tmp_path, OMP_NUM_THREADS="1")
    line = "trained on 2 by paceline.accelerator over 2 steps"
    assert done.stdout.count(line) == 2, done.stdout
