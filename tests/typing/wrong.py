# SPDX-License-Identifier: Apache-2.0
"""Mistakes that a type checker must find: each line marked `error` is one; read by mypy only."""

import paceline as torch
from paceline import Accelerator, nn

nn.Linear(10)  # error
Accelerator(mixed_precision=3)  # error
torch.zeros(2, dtype="float32")  # error
torch.optim.SGD(nn.Linear(2, 2).parameters(), learning_rate=0.1)  # error
torch.ones(2).no_such_method()  # error
