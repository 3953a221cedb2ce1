# SPDX-License-Identifier: Apache-2.0
"""How tensors print: literal expectations, and PyTorch's own output where it is installed."""

from __future__ import annotations

import math

import pytest

import paceline
from unit import cases

# The text, and what makes the tensor of either library called `torch`.
LITERAL = [
    ("torch.tensor(3)", "tensor(3)"),
    ("torch.tensor(2.5)", "tensor(2.5000)"),
    ("torch.tensor([1., 2.])", "tensor([1., 2.])"),
    ("torch.tensor([1, 20, 300])", "tensor([  1,  20, 300])"),
    ("torch.tensor([True, False])", "tensor([ True, False])"),
    ("torch.tensor([[1.5, 2], [3, 4]])", "tensor([[1.5000, 2.0000],\n        [3.0000, 4.0000]])"),
    ("torch.tensor([])", "tensor([])"),
    ("torch.zeros(0, 3)", "tensor([], size=(0, 3))"),
    ("torch.tensor([1., 2.], requires_grad=True)", "tensor([1., 2.], requires_grad=True)"),
    ("torch.tensor([1e-5, 1.0])", "tensor([1.0000e-05, 1.0000e+00])"),
    ("torch.tensor([math.inf, -1.0])", "tensor([inf, -1.])"),
    ("torch.tensor([math.nan, 0.5])", "tensor([   nan, 0.5000])"),
]
DTYPES = [
    ("torch.tensor([1, 2], dtype=torch.int32)", "tensor([1, 2], dtype=paceline.int32)"),
    ("torch.tensor([1.5], dtype=torch.float64)", "tensor([1.5000], dtype=paceline.float64)"),
    ("torch.tensor([1.5], dtype=torch.bfloat16)", "tensor([1.5000], dtype=paceline.bfloat16)"),
    ("torch.tensor([], dtype=torch.int64)", "tensor([], dtype=paceline.int64)"),
    ("torch.zeros(2, dtype=torch.uint8)", "tensor([0, 0], dtype=paceline.uint8)"),
]


@pytest.mark.parametrize(("code", "expected"), LITERAL + DTYPES)
def test_literal(code: str, expected: str) -> None:
    assert repr(eval(code, {"torch": paceline, "math": math})) == expected


@pytest.mark.parametrize("code", cases.PRINTED)
def test_as_pytorch(code: str) -> None:
    assert cases.printed(paceline, code) == cases.expected("printed", code)


@pytest.mark.parametrize(("code", "expected"), LITERAL + DTYPES)
def test_literals_are_pytorchs(code: str, expected: str) -> None:
    assert cases.printed(pytest.importorskip("torch"), code) == expected


def test_what_made_it_is_named() -> None:
    x = paceline.ones(2, requires_grad=True)
    assert repr(x * 2) == "tensor([2., 2.], grad_fn=<MulBackward>)"


def test_parameter() -> None:
    p = paceline.nn.Parameter(paceline.ones(1))
    assert repr(p) == "Parameter containing:\ntensor([1.], requires_grad=True)"


def test_zero_dim_follows_format() -> None:
    assert f"{paceline.tensor(0.12345):.2f}" == "0.12"
    with pytest.raises(TypeError):
        format(paceline.ones(2), ".2f")


def test_options() -> None:
    try:
        paceline.set_printoptions(precision=2, threshold=4, edgeitems=1)
        assert repr(paceline.arange(6.0) / 4) == "tensor([0.00,  ..., 1.25])"
        paceline.set_printoptions(sci_mode=True)
        assert repr(paceline.tensor([1.0])) == "tensor([1.00e+00])"
    finally:
        paceline.set_printoptions(profile="default")
    with pytest.raises(ValueError, match="profile"):
        paceline.set_printoptions(profile="long")
