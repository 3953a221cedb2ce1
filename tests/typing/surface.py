# SPDX-License-Identifier: Apache-2.0
"""What a type checker must make of an ordinary script; read by mypy only, never run."""

from typing import assert_type

import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator, Tensor, nn, optim
from paceline.utils.data import DataLoader, Dataset, TensorDataset

x = torch.randn(3, 4)
assert_type(x, Tensor)
assert_type(x @ x.T, Tensor)
assert_type(2.0 * x - 1, Tensor)
assert_type(x[0], Tensor)
assert_type(x.shape, tuple[int, ...])
assert_type(x.sum(dim=0, keepdim=True), Tensor)
assert_type(x.requires_grad, bool)
assert_type(x.grad, Tensor | None)
assert_type(torch.zeros(2, dtype=torch.int64), Tensor)
assert_type(torch.cuda.is_available(), bool)
assert_type(torch.__version__, str)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 64)
        self.out = nn.Linear(64, 2)

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = self.out(F.relu(self.hidden(batch)))
        return result


class Numbers(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.ones(2) * index}


model = Net()
optimizer = optim.AdamW(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(x, x), batch_size=2, shuffle=True)
assert_type(len(loader), int)

accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
assert_type(accelerator.is_main_process, bool)
assert_type(accelerator.num_processes, int)
with torch.no_grad():
    assert_type(F.linear_cross_entropy(x, x, torch.zeros(3, dtype=torch.long)), Tensor)
    loss = F.cross_entropy(x, torch.zeros(3, dtype=torch.long))
assert_type(loss, Tensor)
accelerator.backward(loss)
optimizer.step()
optimizer.zero_grad()
torch.save(model.state_dict(), "model.pth")
