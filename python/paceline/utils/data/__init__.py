# SPDX-License-Identifier: Apache-2.0
"""Data sets, samplers and DataLoader, with PyTorch's names."""

from __future__ import annotations

import sys
from typing import Any

from paceline.utils.data.collate import default_collate, default_convert
from paceline.utils.data.dataloader import DataLoader
from paceline.utils.data.dataset import (
    ArrayDataset,
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)
from paceline.utils.data.sampler import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = [
    "ArrayDataset",
    "BatchSampler",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "StackDataset",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
]


def get_worker_info() -> Any:
    """Tell which worker of a `DataLoader` this process is; None where it is none.

    An `IterableDataset` uses it to give each worker another part of the stream. The object has
    ``id``, ``num_workers``, ``seed`` and ``dataset`` (this process's copy).
    """
    worker = sys.modules.get("paceline.utils.data.worker")  # only workers' loaders need it
    return None if worker is None else worker.get_worker_info()
