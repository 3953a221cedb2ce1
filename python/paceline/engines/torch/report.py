# SPDX-License-Identifier: Apache-2.0
"""How PyTorch's tensors go between ranks here, in one line: ``paceline env`` runs this module.

A process of its own, because that command loads no PyTorch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from .device_group import BACKENDS, goes_by_torch

__all__ = ["describe"]


def describe() -> str:
    """Say which way CPU tensors and CUDA tensors take."""
    gloo = goes_by_torch(torch.device("cpu"))
    cpu = (
        "torch.distributed (gloo), as PACELINE_TORCH_DISTRIBUTED asks" if gloo else "shared memory"
    )
    return f"CPU tensors by {cpu}; {_cuda()}"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no GPU that this PyTorch can use"
    count = torch.cuda.device_count()
    if not dist.is_available() or not dist.is_nccl_available():
        return f"{count} GPUs, but this PyTorch was built without {BACKENDS['cuda']}"
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return f"CUDA tensors ({count} GPUs) by torch.distributed (nccl {version})"


if __name__ == "__main__":
    print(describe())
