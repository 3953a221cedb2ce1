# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (the scripts are as people type them)
"""What people type, with only its imports changed, on one and on two processes.

None of the scripts sets a seed, and each process makes data of its own.
"""

from __future__ import annotations

import pytest

import harness

IMPORTS = """\
import os
import tempfile
import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator
from paceline.optim import AdamW, get_scheduler
from paceline.utils.data import DataLoader, TensorDataset, Dataset
import rankside
os.chdir(tempfile.mkdtemp())
"""

FIRST = """\
accelerator = Accelerator()
print(accelerator.device, accelerator.process_index, accelerator.num_processes,
      accelerator.mixed_precision, accelerator.gradient_accumulation_steps)
model = torch.nn.Linear(10, 10)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
dataloader = torch.utils.data.DataLoader(torch.randn(100, 10), batch_size=10)
model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)
for epoch in range(2):
    for batch in dataloader:
        outputs = model(batch)
        loss = outputs.sum()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.is_main_process:
        print(f"Epoch {epoch} completed")
"""

CLASSIFIER = """\
local_steps = 4                                       # never reaches Accelerator()
accelerator = Accelerator({arguments})
X = torch.randn(1000, 10); y = torch.randint(0, 2, (1000,))
dataloader = DataLoader(TensorDataset(X, y), batch_size=32, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)
model.train()
for epoch in range(2):
    total_loss = 0
    for X_batch, y_batch in dataloader:
        {accumulate}
            loss = F.cross_entropy(model(X_batch), y_batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        total_loss += loss.detach()
    if accelerator.is_main_process:
        print(f"Epoch {{epoch}}, Loss: {{total_loss.item() / len(dataloader):.4f}}")
results = total_loss / len(dataloader)
all_results = accelerator.gather(results)
"""

SINGLE = """\
class Pairs(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return {"input_ids": torch.randn(10), "labels": torch.randint(0, 2, (1,))[0]}
dataset = Pairs()
model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = torch.nn.CrossEntropyLoss()
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
model.to(device)
for batch in DataLoader(dataset, batch_size=32, shuffle=True):
    inputs = batch["input_ids"].to(device); labels = batch["labels"].to(device)
    optimizer.zero_grad(); loss = criterion(model(inputs), labels); loss.backward(); optimizer.step()
    print(f"Loss: {loss.item()}")
torch.save(model.state_dict(), "model.pth")
again = torch.load("model.pth")
assert list(again) == list(model.state_dict())
"""

NOTEBOOK_CELL = """\
class SimpleDataset(Dataset):
    def __init__(self, size):
        self.data = torch.randn(size, 10)
        self.labels = torch.randint(0, 2, (size,))
    def __len__(self):
        return len(self.data)
    def __getitem__(self, i):
        return {"x": self.data[i], "y": self.labels[i]}
class SimpleModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(10, 2)
    def forward(self, x):
        return self.net(x)
def train():
    accelerator = Accelerator()
    loader = DataLoader(SimpleDataset(500), batch_size=32)
    model = SimpleModel(); optimizer = torch.optim.Adam(model.parameters(), lr=1e-3); criterion = torch.nn.CrossEntropyLoss()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(3):
        total_loss = 0
        for batch in loader:
            loss = criterion(model(batch["x"]), batch["y"])
            optimizer.zero_grad(); accelerator.backward(loss); optimizer.step()
            total_loss += loss.item()
    if accelerator.is_main_process:
        torch.save(accelerator.unwrap_model(model).state_dict(), "model.pth")
        assert list(torch.load("model.pth")) == ["net.weight", "net.bias"]
train()
"""

TRANSFORMERS_STYLE = """\
from tqdm import tqdm
class Output:
    def __init__(self, loss):
        self.loss = loss
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 50)
    def forward(self, input_ids, labels):
        logits = self.head(self.embed(input_ids))
        return Output(F.cross_entropy(logits.view(-1, 50), labels.view(-1)))
class Tokens(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, i):
        ids = torch.randint(0, 50, (8,))
        return {"input_ids": ids, "labels": ids}
def my_collate(batch):
    return {"input_ids": torch.stack([b["input_ids"] for b in batch]), "labels": torch.stack([b["labels"] for b in batch])}
accelerator = Accelerator()
num_epochs = 2
model = Model()
optimizer = AdamW(model.parameters(), lr=3e-2)
train_dataloader = DataLoader(Tokens(), shuffle=True, batch_size=4, collate_fn=my_collate)
eval_dataloader = DataLoader(Tokens(), batch_size=4, collate_fn=my_collate)
train_dataloader, eval_dataloader, model, optimizer = accelerator.prepare(train_dataloader, eval_dataloader, model, optimizer)
num_training_steps = num_epochs * len(train_dataloader)
lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=num_training_steps)
progress_bar = tqdm(range(num_training_steps))
model.train()
first = None
for epoch in range(num_epochs):
    for batch in train_dataloader:
        outputs = model(**batch); loss = outputs.loss
        first = loss.item() if first is None else first
        accelerator.backward(loss); optimizer.step(); lr_scheduler.step(); optimizer.zero_grad(); progress_bar.update(1)
assert progress_bar.n == num_training_steps
assert optimizer.param_groups[0]["lr"] == 0.0, "the schedule ends where the run ends"
assert loss.item() < first
rankside.out(len(train_dataloader))
"""

SCHEDULER_IN_PREPARE = """\
accelerator = Accelerator()
model = torch.nn.Linear(4, 1); optimizer = AdamW(model.parameters(), lr=1.0)
training_dataloader = DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=2)
scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=8)
model, optimizer, training_dataloader, scheduler = accelerator.prepare(
    model, optimizer, training_dataloader, scheduler)
for batch in training_dataloader:
    inputs, targets = batch
    loss = F.mse_loss(model(inputs), targets)
    accelerator.backward(loss); optimizer.step(); scheduler.step(); optimizer.zero_grad()
assert optimizer.param_groups[0]["lr"] == 0.0, "8 steps: 1 x 8 or 2 x 4"
"""


def _run(n: int, text: str, **env: str) -> list[harness.Result]:
    return harness.run_ranks(n, IMPORTS + text, env=env, timeout=60)


@pytest.mark.parametrize("n", [1, 2])
def test_first_script(n: int) -> None:
    ranks = _run(n, FIRST)
    for rank in ranks:
        assert rank.stdout.splitlines()[0] == f"cpu {rank.rank} {n} no 1"
        said = rank.stderr.splitlines()  # the line of prepare, and nothing else
        assert [line.partition(";")[0] for line in said] == (
            [f"paceline: {n} process{'es' * (n > 1)} on cpu, precision no"] * (rank.rank == 0)
        )
    assert ranks[0].stdout.splitlines()[1:] == ["Epoch 0 completed", "Epoch 1 completed"]
    assert all(len(rank.stdout.splitlines()) == 1 for rank in ranks[1:])


@pytest.mark.parametrize("n", [1, 2])
def test_first_script_reads_the_launchers_environment(n: int) -> None:
    env = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    for rank in _run(n, FIRST, **env):
        assert rank.stdout.splitlines()[0] == f"cpu {rank.rank} {n} bf16 2"


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "accumulate"),
    [
        ("", "with accelerator.accumulate(model):"),
        ("gradient_accumulation_steps=4", "with accelerator.accumulate(model):"),
        ("gradient_accumulation_steps=4", "if True:"),
        ('mixed_precision="bf16"', "with accelerator.accumulate(model):"),
    ],
)
def test_two_layer_classifier(n: int, arguments: str, accumulate: str) -> None:
    text = CLASSIFIER.format(arguments=arguments, accumulate=accumulate)
    text += "rankside.out([list(all_results.shape), len(dataloader)])\n"
    for rank in _run(n, text):
        # A 0-d tensor is gathered as one of one element; alone it stays as it is.
        assert rank.outs == [[[2] if n == 2 else [], 32 // n]]


@pytest.mark.parametrize("n", [1, 2])
def test_single_device_loop(n: int) -> None:
    for rank in _run(n, SINGLE):
        assert len(rank.stdout.splitlines()) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_notebook_cell_function(n: int) -> None:
    _run(n, NOTEBOOK_CELL)


@pytest.mark.parametrize("n", [1, 2])
def test_transformers_style_loop(n: int) -> None:
    for rank in _run(n, TRANSFORMERS_STYLE):
        assert rank.outs == [10 // n]


@pytest.mark.parametrize("n", [1, 2])
def test_prepared_scheduler_ends_with_the_run(n: int) -> None:
    _run(n, SCHEDULER_IN_PREPARE)


WRONG_SHAPE = """\
accelerator = Accelerator()
model = accelerator.prepare(torch.nn.Linear(10, 10))
with rankside.failing():
    model(torch.randn(4, 7))
"""


def test_scheduler_that_steps_once_per_call() -> None:
    text = SCHEDULER_IN_PREPARE.replace(
        "Accelerator()", "Accelerator(step_scheduler_with_optimizer=False)"
    ).replace('"] == 0.0, "8 steps: 1 x 8 or 2 x 4"', '"] == 0.5')
    assert "== 0.5" in text
    _run(2, text)


@pytest.mark.parametrize("n", [1, 2])
def test_batch_of_the_wrong_shape_is_a_clear_error(n: int) -> None:
    for rank in _run(n, WRONG_SHAPE):
        text = rank.exception["text"]
        assert all(part in text for part in ("[linear]", "7", "10")), text
