# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level GPT, or Llama, on the source code of Python's own standard library.

    paceline launch --num_processes 2 --mixed_precision bf16 examples/train_gpt.py

Each process reads other samples; together they train one model. Nothing is downloaded. It writes
a checkpoint that ``--resume`` goes on from, the loss curve, and a sample of what it has learned.
"""

import argparse
import hashlib
import itertools
import math
import os
import sysconfig
import time
from pathlib import Path

from gpt import GPT, GPTConfig, language_loss
from llama import Llama, LlamaConfig

import paceline as torch
from paceline import Accelerator
from paceline.optim import AdamW
from paceline.optim.lr_scheduler import LambdaLR
from paceline.utils import gather_object, set_seed, tqdm
from paceline.utils.data import DataLoader, Dataset, Subset

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def read_library():
    """Give the library's source as training and validation bytes; a file's name decides which."""
    root = Path(sysconfig.get_paths()["stdlib"])
    parts = {True: bytearray(), False: bytearray()}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED.isdisjoint(name.parts):
            in_validation = hashlib.sha256(name.as_posix().encode()).digest()[0] < 13  # 5 %
            parts[in_validation] += path.read_bytes()
    return parts[False], parts[True]


class Windows(Dataset):
    """All windows of ``context`` bytes side by side; each epoch they start elsewhere."""

    def __init__(self, data, context):
        self.data = torch.frombuffer(data, dtype=torch.uint8)
        self.context = context
        self.shift = 0

    def set_epoch(self, epoch):
        self.shift = epoch * 97 % self.context

    def __len__(self):
        return len(self.data) // self.context - 2  # room for the shift and the last target

    def __getitem__(self, i):
        start = self.shift + i * self.context
        window = self.data[start : start + self.context + 1].long()
        return window[:-1], window[1:]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", choices=["gpt", "llama"], default="gpt")
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=6)
    add("--key-heads", type=int, help="of keys and values, for llama: one for each head")
    add("--width", type=int, default=384)
    add("--context", type=int, default=256)
    add("--dropout", type=float, default=0.0)
    add("--batch-size", type=int, default=8, help="windows per process and step")
    add("--accumulate", type=int, default=1, help="batches per optimizer step")
    add("--steps", type=int, default=250)
    add("--warmup", type=int, default=20, help="steps until the full learning rate")
    add("--lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.1)
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--validate-every", type=int, default=50)
    add("--validation-windows", type=int, default=64)
    add("--checkpoint-every", type=int, default=100)
    add("--sample", type=int, default=300, help="bytes to generate at the end")
    add("--seed", type=int, help="repeat a run")
    add("--out", type=Path, default=Path("gpt-out"))
    add("--stop-after", type=int, help="leave early at this step, to go on with --resume")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    args = parser.parse_args()
    if args.model == "llama" and args.dropout:
        parser.error("--model llama has no dropout")
    if args.model == "gpt" and args.key_heads:
        parser.error("--key-heads needs --model llama")
    return args


def make_model(args):
    sizes = {"layers": args.layers, "width": args.width, "context": args.context}
    if args.model == "gpt":
        return GPT(GPTConfig(heads=args.heads, dropout=args.dropout, **sizes))
    key_heads = args.key_heads or args.heads
    return Llama(LlamaConfig(heads=args.heads, key_heads=key_heads, **sizes))


def learning_rate(step, args):
    """Rise linearly, then fall to a tenth along a cosine; as a factor of ``--lr``."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    done = min(1.0, (step - args.warmup) / max(1, args.steps - args.warmup))
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def endless(loader, batches_done):
    """Give batches for ever, from where a run left off."""
    epoch, skip = divmod(batches_done, len(loader))
    while True:
        loader.set_epoch(epoch)
        yield from itertools.islice(loader, skip, None)
        epoch, skip = epoch + 1, 0


class Run:
    """The model in training, and everything that is saved of it."""

    def __init__(self, accelerator, args):
        self.accelerator, self.args = accelerator, args
        model = make_model(args)
        groups = model.parameter_groups(args.weight_decay)
        optimizer = AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # Counted in optimizer steps of the whole run, so it is not prepared: one call, one step.
        self.scheduler = LambdaLR(self.optimizer, lambda step: learning_rate(step, args))
        self.step = self.batches = 0
        self.curve = []  # [step, "train" or "validation", bits per byte]
        self.path = args.out / "checkpoint.safetensors"

    def update(self, inputs, targets):
        """Learn from one batch; gives its loss."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            loss = language_loss(self.model(inputs), targets)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(self.model.parameters(), self.args.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.batches += 1
        if accelerator.sync_gradients:
            self.scheduler.step()
            self.step += 1
        return loss.detach()

    def record(self, kind, bits):
        self.curve.append([self.step, kind, bits])
        return bits

    @torch.no_grad()
    def validate(self, loader):
        """Give the loss on the validation windows, each counted once, in bits per byte."""
        self.model.eval()
        losses = []
        for inputs, targets in loader:
            each = language_loss(self.model(inputs), targets, reduction="none")
            of_window = each.view(targets.shape).mean(dim=1)
            losses.append(self.accelerator.gather_for_metrics(of_window))
        self.model.train()
        return torch.cat(losses).mean().item() / math.log(2)

    def save(self):
        """Write a checkpoint; a crash while writing leaves the one before."""
        random_states = gather_object([torch.get_rng_state().tolist()])
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "batches": self.batches,
            "random_states": random_states,
            "curve": self.curve,
        }
        beside = self.path.with_name(self.path.name + ".new")
        torch.save(state, beside)
        os.replace(beside, self.path)

    def load(self):
        """Go back to where the checkpoint was saved."""
        state = torch.load(self.path)
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.batches = state["step"], state["batches"]
        self.curve = state["curve"]
        if len(state["random_states"]) == self.accelerator.num_processes:
            mine = state["random_states"][self.accelerator.process_index]
            torch.set_rng_state(torch.tensor(mine, dtype=torch.uint8))


def make_loaders(args):
    """Give the loaders of the training windows and of a spread of validation windows."""
    train_bytes, validation_bytes = read_library()
    train = Windows(train_bytes, args.context)
    validation = Windows(validation_bytes, args.context)
    count = min(args.validation_windows, len(validation))
    spread = Subset(validation, [i * len(validation) // count for i in range(count)])
    return (
        DataLoader(train, args.batch_size, shuffle=True, drop_last=True),
        DataLoader(spread, args.batch_size),
    )


def train(run, train_loader, validation_loader):
    """Run to the last step, with a bar that tells how it goes."""
    accelerator, args = run.accelerator, run.args
    tokens = args.batch_size * args.context * accelerator.num_processes  # of a batch
    end = args.steps if args.stop_after is None else min(args.steps, args.stop_after)
    bar = tqdm(total=end, initial=run.step, unit="step")
    began, batches_before = time.perf_counter(), run.batches
    for inputs, targets in endless(train_loader, run.batches):
        if run.step >= end:
            break
        loss = run.update(inputs, targets)
        if not accelerator.sync_gradients:
            continue
        bits = run.record("train", accelerator.reduce(loss, "mean").item() / math.log(2))
        speed = tokens * (run.batches - batches_before) / (time.perf_counter() - began)
        bar.set_postfix_str(f"loss {bits:.3f} bits/byte, {speed:,.0f} tokens/s", refresh=False)
        bar.update(1)
        if run.step % args.validate_every == 0 or run.step == end:
            bits = run.record("validation", run.validate(validation_loader))
            if accelerator.is_main_process:
                bar.write(f"step {run.step}: validation loss {bits:.3f} bits per byte")
        if run.step % args.checkpoint_every == 0 or run.step == end:
            run.save()
    bar.close()


def save_curve(curve, out):
    """Write the losses as a table, and as a picture where Matplotlib is installed."""
    rows = [f"{step},{kind},{bits:.4f}" for step, kind, bits in curve]
    (out / "curve.csv").write_text("\n".join(["step,kind,bits_per_byte", *rows, ""]))
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    for kind in ("train", "validation"):
        points = [(step, bits) for step, of, bits in curve if of == kind]
        pyplot.plot(*zip(*points, strict=True), label=kind)
    pyplot.xlabel("step")
    pyplot.ylabel("bits per byte")
    pyplot.legend()
    pyplot.savefig(out / "curve.png", dpi=120)


def main():
    args = parse_arguments()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
    if args.seed is not None:
        set_seed(args.seed, device_specific=True)
    args.out.mkdir(parents=True, exist_ok=True)

    train_loader, validation_loader = accelerator.prepare(*make_loaders(args))
    run = Run(accelerator, args)
    if args.resume:
        run.load()
    size = sum(parameter.numel() for parameter in run.model.parameters())
    accelerator.print(
        f"{size / 1e6:.2f} M parameters, "
        f"{train_loader.total_dataset_length * args.context / 1e6:.1f} MB of source, "
        f"{accelerator.num_processes} processes, precision {accelerator.mixed_precision}"
    )
    train(run, train_loader, validation_loader)

    if accelerator.is_main_process:
        save_curve(run.curve, args.out)
        run.model.eval()
        text = run.model.generate(b"def ", args.sample).decode("utf-8", "replace")
        print(f"--- a sample ---\n{text}\n--- saved in {args.out} ---")


if __name__ == "__main__":
    main()
