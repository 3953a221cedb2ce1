# SPDX-License-Identifier: Apache-2.0
"""A PyTorch script as written for Hugging Face Accelerate: only the import lines say paceline.

Everything a documented training script touches: seeds, a scheduler counted in steps, accumulation,
metrics gathered exactly, checkpoints that training goes on from.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset, random_split

from paceline import Accelerator
from paceline.utils import set_seed


def get_dataloaders(accelerator: Accelerator, batch_size: int) -> tuple[DataLoader, DataLoader]:
    with accelerator.main_process_first():  # a download would go here
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(600, 3, 16, 16, generator=generator)
        labels = (images[:, 0].mean(dim=(1, 2)) > images[:, 1].mean(dim=(1, 2))).long()
    train, test = random_split(TensorDataset(images, labels), [501, 99], generator=generator)
    return (
        DataLoader(train, shuffle=True, batch_size=batch_size),
        DataLoader(test, shuffle=False, batch_size=2 * batch_size),
    )


def make_model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(16),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )


def evaluate(accelerator: Accelerator, model: torch.nn.Module, dataloader: DataLoader) -> float:
    model.eval()
    accurate, seen = 0, 0
    for inputs, targets in dataloader:
        with torch.no_grad():
            predictions = model(inputs).argmax(dim=-1)
        predictions, targets = accelerator.gather_for_metrics((predictions, targets))
        accurate += (predictions == targets).sum().item()
        seen += len(targets)
    assert seen == 99, seen  # what was repeated to fill the last batches is dropped
    return accurate / seen


def training_function(args: argparse.Namespace) -> None:
    accelerator = Accelerator(
        cpu=args.cpu, mixed_precision=args.mixed_precision, gradient_accumulation_steps=2
    )
    set_seed(args.seed)
    train_dataloader, eval_dataloader = get_dataloaders(accelerator, args.batch_size)
    model = make_model().to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    steps = args.num_epochs * len(train_dataloader)
    scheduler = OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)
    model, optimizer, train_dataloader, eval_dataloader, scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, scheduler
    )
    first_epoch = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        first_epoch = int(args.resume_from_checkpoint.rstrip("/").rpartition("_")[2]) + 1

    for epoch in range(first_epoch, args.num_epochs):
        model.train()
        for inputs, targets in train_dataloader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        accuracy = evaluate(accelerator, model, eval_dataloader)
        accelerator.print(f"epoch {epoch}: accuracy {100 * accuracy:.2f}")
        if args.output_dir:
            accelerator.save_state(f"{args.output_dir}/epoch_{epoch}")

    accelerator.wait_for_everyone()
    if args.output_dir:
        weights = accelerator.unwrap_model(model).state_dict()
        accelerator.save(weights, f"{args.output_dir}/weights.pt")
    accelerator.end_training()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--num_epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", default=None)
    parser.add_argument("--resume_from_checkpoint", default=None)
    training_function(parser.parse_args())


if __name__ == "__main__":
    main()
