# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules, with PyTorch's names."""

from paceline.optim import lr_scheduler
from paceline.optim.adam import Adam, AdamW
from paceline.optim.optimizer import Optimizer
from paceline.optim.schedules import get_scheduler
from paceline.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "get_scheduler", "lr_scheduler"]
