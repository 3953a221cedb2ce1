# SPDX-License-Identifier: Apache-2.0
"""Where PyTorch has DistributedSampler."""

from paceline.utils.data.sampler import DistributedSampler

__all__ = ["DistributedSampler"]
