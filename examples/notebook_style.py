# SPDX-License-Identifier: Apache-2.0
"""What one types into a notebook cell: a data set of dicts, and a launch without a guard."""

import paceline as torch
from paceline import Accelerator, notebook_launcher
from paceline.utils.data import DataLoader, Dataset


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
        self.hidden = torch.nn.Linear(10, 64)
        self.out = torch.nn.Linear(64, 2)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


def train():
    accelerator = Accelerator()
    loader = DataLoader(SimpleDataset(10000), batch_size=32)
    model = SimpleModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(3):
        total_loss = 0
        for batch in loader:
            loss = criterion(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total_loss += loss.item()
        if accelerator.is_main_process:
            print(f"Epoch {epoch}, Loss: {total_loss / len(loader):.4f}")
    if accelerator.is_main_process:
        torch.save(accelerator.unwrap_model(model).state_dict(), "model.pth")


notebook_launcher(train, num_processes=2)
