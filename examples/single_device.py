# SPDX-License-Identifier: Apache-2.0
"""The plain loop, without an Accelerator, for comparison."""

import paceline as torch
from paceline.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    """Samples of ten numbers, labelled by the sign of their sum."""

    def __init__(self, size):
        self.data = torch.randn(size, 10)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return {"input_ids": self.data[i], "labels": (self.data[i].sum() > 0).long()}


device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
model.to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
criterion = torch.nn.CrossEntropyLoss()

for epoch in range(3):
    for batch in DataLoader(Numbers(640), batch_size=32, shuffle=True):
        inputs = batch["input_ids"].to(device)
        labels = batch["labels"].to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
    print(f"Epoch {epoch}, Loss: {loss.item():.4f}")
torch.save(model.state_dict(), "model.pth")
