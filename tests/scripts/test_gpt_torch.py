# SPDX-License-Identifier: Apache-2.0
"""The same GPT in PyTorch, from the same weights: logits, gradients and a training curve.

examples/gpt.py is run twice, once with its two import lines changed to PyTorch's.
"""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

import paceline

torch = pytest.importorskip("torch")

SOURCE = (Path(__file__).parents[2] / "examples" / "gpt.py").read_text()


def _module(source: str) -> types.ModuleType:
    import sys

    module = types.ModuleType("gpt_under_test")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, "gpt.py", "exec"), module.__dict__)
    return module


def _in_torch() -> types.ModuleType:
    changed = (
        SOURCE.replace("import paceline as torch", "import torch")
        .replace("import paceline.nn as nn", "import torch.nn as nn")
        .replace("import paceline.nn.functional as F", "import torch.nn.functional as F")
    )
    assert "paceline" not in changed
    return _module(changed)


@pytest.fixture
def one_thread():
    # Two pools of threads that wait by spinning get in each other's way.
    before = paceline.get_num_threads(), torch.get_num_threads()
    paceline.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    paceline.set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def pair(one_thread):
    ours, theirs = _module(SOURCE), _in_torch()
    sizes = {"layers": 3, "heads": 4, "width": 64, "context": 32, "vocab": 96}
    paceline.manual_seed(0)
    mine, other = ours.GPT(ours.GPTConfig(**sizes)), theirs.GPT(theirs.GPTConfig(**sizes))
    state = {name: torch.from_numpy(np.array(t.numpy())) for name, t in mine.state_dict().items()}
    other.load_state_dict(state)
    data = np.random.default_rng(0).integers(0, 96, (20, 4, 33))
    return ours, mine, theirs, other, data


def _far(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def _loss(module, model, tensor, batch):
    logits = model(tensor(batch[:, :-1]))
    return logits, module.language_loss(logits, tensor(batch[:, 1:]))


def test_logits_and_gradients(pair) -> None:
    ours, mine, theirs, other, data = pair
    logits, loss = _loss(ours, mine, paceline.tensor, data[0])
    expected, their_loss = _loss(theirs, other, torch.tensor, data[0])
    assert not _far(logits.detach().numpy(), expected.detach().numpy()) > 1e-5
    loss.backward()
    their_loss.backward()
    theirs_by_name = dict(other.named_parameters())
    for name, parameter in mine.named_parameters():
        far = _far(parameter.grad.numpy(), theirs_by_name[name].grad.numpy())
        assert far <= 1e-4, f"{name}: {far:.1e}"
    assert len(theirs_by_name) == len(list(mine.parameters())) == 3 * 12 + 4


def test_twenty_steps_of_adamw(pair) -> None:
    ours, mine, theirs, other, data = pair
    curves = []
    for library, module, model in ((paceline, ours, mine), (torch, theirs, other)):
        optimizer = library.optim.AdamW(model.parameter_groups(0.1), lr=1e-3, betas=(0.9, 0.95))
        curve = []
        for batch in data:
            _, loss = _loss(module, model, library.tensor, batch)
            loss.backward()
            library.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        curves.append(curve)
    assert len(curves[0]) == 20
    for one, two in zip(*curves, strict=True):
        assert abs(one - two) <= 1e-3 * abs(two)


def test_number_of_parameters() -> None:
    module = _module(SOURCE)
    model = module.GPT(module.GPTConfig())
    count = sum(p.numel() for name, p in model.named_parameters() if "positions" not in name)
    assert count == 10_745_856
