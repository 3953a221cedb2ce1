# SPDX-License-Identifier: Apache-2.0
"""A two-layer classifier with gradient accumulation, and results gathered from all processes."""

import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator
from paceline.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(gradient_accumulation_steps=2)

X = torch.randn(1000, 10)
y = (X[:, 0] + X[:, 1] > 0).long()
dataloader = DataLoader(TensorDataset(X, y), batch_size=32, shuffle=True)

model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)

model.train()
for epoch in range(5):
    total_loss = 0
    for X_batch, y_batch in dataloader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(X_batch), y_batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        total_loss += loss.detach()
    if accelerator.is_main_process:
        print(f"Epoch {epoch}, Loss: {total_loss.item() / len(dataloader):.4f}")

model.eval()
right = []
with torch.no_grad():
    for X_batch, y_batch in dataloader:
        right.append(accelerator.gather_for_metrics(model(X_batch).argmax(dim=1) == y_batch))
accelerator.print(f"Accuracy: {torch.cat(right).float().mean().item():.3f}")
