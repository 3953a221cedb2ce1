# SPDX-License-Identifier: Apache-2.0
"""The first script: what am I, and does a loop run? With `python` or with `paceline launch`."""

import paceline as torch
from paceline import Accelerator

accelerator = Accelerator()
print(f"device: {accelerator.device}")
print(f"process: {accelerator.process_index} of {accelerator.num_processes}")
print(f"mixed precision: {accelerator.mixed_precision}")
print(f"gradient accumulation: {accelerator.gradient_accumulation_steps}")

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
