# SPDX-License-Identifier: Apache-2.0
"""What importing loads, and that every name that scripts use is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import paceline

HEAVY = (
    "torch",
    "numpy",
    "paceline.nn",
    "paceline.optim",
    "paceline.utils",
    "paceline.distributed",
)


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, paceline; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _run(code) == "[]"


def test_training_needs_no_numpy() -> None:
    code = (
        "import sys, paceline as torch\n"
        "m = torch.nn.Linear(2, 1); o = torch.optim.Adam(m.parameters())\n"
        "for x in torch.utils.data.DataLoader(torch.randn(4, 2), batch_size=2, shuffle=True):\n"
        "    m(x).sum().backward(); o.step(); o.zero_grad()\n"
        "repr(m.weight)\n"
        "print('numpy' in sys.modules)"
    )
    assert _run(code) == "False"


NAMES = """
    Accelerator notebook_launcher __version__ Tensor tensor as_tensor from_numpy zeros ones full
    empty arange linspace eye randn rand randint randperm zeros_like ones_like full_like empty_like
    rand_like randn_like manual_seed initial_seed Generator get_rng_state set_rng_state cat stack
    where matmul no_grad enable_grad set_grad_enabled inference_mode is_tensor save load allclose
    equal isclose multinomial topk tril triu autocast nn optim utils get_num_threads
    set_num_threads device dtype float32 float64 float16 bfloat16 int32 int64 uint8 bool float
    double half int long finfo iinfo set_default_dtype get_default_dtype cuda distributed amp
    autograd softmax log_softmax sum mean max min argmax exp log sqrt abs pow clamp relu sigmoid
    tanh bmm mm norm std var sort cumsum gather index_select nonzero flatten reshape squeeze
    unsqueeze transpose permute split chunk masked_select
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_package(name: str) -> None:
    assert getattr(paceline, name) is not None
    assert name in dir(paceline)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="einsum_is_not_here"):
        paceline.einsum_is_not_here  # noqa: B018
    assert "cannot import name" in _run(
        "try:\n    from paceline import nothing\nexcept ImportError as e:\n    print(e)"
    )


def test_paths_of_imports() -> None:
    import paceline as torch
    import paceline.nn.functional as F
    from paceline import Accelerator, notebook_launcher
    from paceline.optim import AdamW, get_scheduler
    from paceline.optim.lr_scheduler import CosineAnnealingLR
    from paceline.utils.data import DataLoader, Dataset, TensorDataset
    from paceline.utils.data.distributed import DistributedSampler

    assert torch.utils.data.DataLoader is DataLoader
    assert torch.nn.functional is F
    for thing in (Accelerator, notebook_launcher, AdamW, get_scheduler, CosineAnnealingLR):
        assert callable(thing)
    for thing in (Dataset, TensorDataset, DistributedSampler):
        assert isinstance(thing, type)


def test_threads() -> None:
    before = paceline.get_num_threads()
    try:
        paceline.set_num_threads(1)
        assert paceline.get_num_threads() == 1
    finally:
        paceline.set_num_threads(before)
    with pytest.raises(ValueError, match="got 0"):
        paceline.set_num_threads(0)


def test_wrong_library_path_is_named() -> None:
    code = (
        "import os; os.environ['PACELINE_DNNL'] = '/nowhere/libdnnl.so.3'\n"
        "import paceline\n"
        "try:\n"
        "    paceline.ones(2, 2) @ paceline.ones(2, 2)\n"
        "except FileNotFoundError as e:\n"
        "    print(e)\n"
    )
    assert "PACELINE_DNNL" in _run(code)
