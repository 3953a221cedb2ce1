# SPDX-License-Identifier: Apache-2.0
"""The Llama of the examples, and what it is made of, beside transformers': the same numbers."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from numerics.compare import array

torch = pytest.importorskip("torch")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture(scope="module")
def example() -> Iterator[types.ModuleType]:
    """Return examples/llama.py."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("llama")
    sys.path.remove(str(EXAMPLES))
    for name in ("llama", "gpt"):
        del sys.modules[name]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Two pools of threads that wait by spinning get in each other's way.
    before = paceline.get_num_threads(), torch.get_num_threads()
    paceline.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    paceline.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_queries_and_keys_are_turned_as_theirs() -> None:
    config = llama.LlamaConfig(num_key_value_heads=2, **SIZES)
    q, k = random(2, 4, 9, 16), random(2, 2, 9, 16, seed=1)
    theirs = [torch.tensor(t, requires_grad=True) for t in (q, k)]
    places = torch.arange(9).expand(2, 9)
    cos, sin = llama.LlamaRotaryEmbedding(config)(theirs[0], places)
    want = llama.apply_rotary_pos_emb(*theirs, cos, sin)
    own_cos, own_sin = F.rotary_tables(9, 16, config.rope_parameters["rope_theta"])
    # Theirs come from angles in float32: at position 8 good to 8 * 2^-24.
    np.testing.assert_allclose(array(own_cos), cos[0, :, :8].numpy(), rtol=0, atol=2e-6)
    for i, t in enumerate((q, k)):
        mine = paceline.tensor(t, requires_grad=True)
        tables = [paceline.tensor(c[0, :, :8].numpy()) for c in (cos, sin)]
        got = F.rotary_embedding(mine, *tables)
        np.testing.assert_allclose(array(got), want[i].detach().numpy(), rtol=1e-6, atol=1e-6)
        got.square().mul(got).sum().backward()
        (want[i] ** 3).sum().backward(retain_graph=True)
        np.testing.assert_allclose(array(mine.grad), theirs[i].grad.numpy(), rtol=1e-5, atol=1e-5)


def test_a_packed_network_is_theirs() -> None:
    config = llama.LlamaConfig(**SIZES)
    torch.manual_seed(0)
    theirs = llama.LlamaMLP(config)
    weights = [p.detach().numpy() for p in (theirs.gate_proj.weight, theirs.up_proj.weight)]
    packed = paceline.tensor(np.concatenate(weights), requires_grad=True)
    down = paceline.tensor(theirs.down_proj.weight.detach().numpy(), requires_grad=True)
    x = random(3, 64)
    want = theirs(torch.tensor(x))
    got = F.linear(F.swiglu(F.linear(paceline.tensor(x), packed)), down)
    np.testing.assert_allclose(array(got), want.detach().numpy(), rtol=1e-5, atol=1e-6)
    got.square().sum().backward()
    want.square().sum().backward()
    grads = [p.weight.grad.numpy() for p in (theirs.gate_proj, theirs.up_proj)]
    np.testing.assert_allclose(array(packed.grad), np.concatenate(grads), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        array(down.grad), theirs.down_proj.weight.grad.numpy(), rtol=1e-4, atol=1e-6
    )


# ---- the whole model ---------------------------------------------------------------------------


def own(example: types.ModuleType, theirs: object, tied: bool) -> tuple[object, object]:
    """Return our model with their weights, and its configuration."""
    config = example.LlamaConfig(
        layers=3, heads=4, key_heads=2, width=64, context=40, vocab=96, hidden=96, eps=1e-6,
        tied=tied,
    )  # fmt: skip
    state = {name: paceline.tensor(t.numpy()) for name, t in theirs.state_dict().items()}
    model = example.Llama(config)
    model.load_state_dict(example.from_hugging_face(state, config))
    return model, config


def far(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients(example: types.ModuleType, tied: bool) -> None:
    torch.manual_seed(0)
    settings = llama.LlamaConfig(
        num_hidden_layers=3, num_key_value_heads=2, vocab_size=96, max_position_embeddings=40,
        tie_word_embeddings=tied, attn_implementation="eager", initializer_range=0.1, **SIZES,
    )  # fmt: skip
    theirs = llama.LlamaForCausalLM(settings)
    model, config = own(example, theirs, tied)
    batch = np.random.default_rng(0).integers(0, 96, (3, 33))
    logits = model(paceline.tensor(batch[:, :-1]))
    want = theirs(torch.tensor(batch[:, :-1])).logits
    # fp32 on both sides; sums of up to 96 terms in another order, over three layers.
    assert far(array(logits), want.detach().numpy()) <= 1e-5
    F.cross_entropy(logits.view(-1, 96), paceline.tensor(batch[:, 1:].reshape(-1))).backward()
    torch.nn.functional.cross_entropy(
        want.view(-1, 96), torch.tensor(batch[:, 1:].reshape(-1))
    ).backward()
    grads = {name: paceline.tensor(p.grad.numpy()) for name, p in theirs.named_parameters()}
    expected = example.from_hugging_face(grads, config)
    compared = 0
    for name, parameter in model.named_parameters():
        assert far(array(parameter.grad), array(expected[name])) <= 1e-4, name
        compared += 1
    assert compared == 3 * 6 + (2 if tied else 3)
