# SPDX-License-Identifier: Apache-2.0
"""What tests of an Accelerator on several processes share: what each rank's script begins with."""

from __future__ import annotations

import harness

PRELUDE = """\
import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator
from paceline.utils import *
from paceline.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset
from rankside import RANK, WORLD, out, failing

def ranges(n, **options):
    return DataLoader(TensorDataset(torch.arange(n)), **options)
"""


def run(n: int, text: str, **options: object) -> list[list[object]]:
    return [rank.outs for rank in harness.run_ranks(n, PRELUDE + text, **options)]


def same(n: int, text: str) -> list[object]:
    outs = run(n, text)
    assert all(other == outs[0] for other in outs)
    return outs[0]
