# SPDX-License-Identifier: Apache-2.0
"""What passes between machines as an object, and that nothing else is ever made of a pickle."""

from __future__ import annotations

import importlib
import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import paceline as pl
from paceline.distributed import closed_pickle
from paceline.distributed.kinds import ReduceOp
from paceline.distributed.links import Settings

PLAIN = [
    None,
    [True, 3, -(2**80), 1.5, 2j, "text", b"bytes", bytearray(b"x")],
    {"a": (1, {2, 3}, frozenset({4})), (1, 2): range(3), "o": OrderedDict(b=1)},
    ReduceOp.MAX,
    Settings(3, "1", "c", 2.0, "l"),  # type: ignore[arg-type]  # any record of ours
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: type(v).__name__)
def test_plain_values_pass(value: Any) -> None:
    assert closed_pickle.loads(closed_pickle.dumps(value, True), True) == value


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool", "U5", "complex64"])
def test_numpy_passes(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    got = closed_pickle.loads(closed_pickle.dumps((array, array[0, 0], array.T), True), True)
    assert np.array_equal(got[0], array)
    assert np.array_equal(got[2], array.T)
    assert (got[0].dtype, got[1].dtype) == (array.dtype, array[0, 0].dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_tensors_pass(dtype: str) -> None:
    for x in (pl.ones((2, 3)), pl.zeros(()), pl.zeros((0, 4))):
        x = x.to(getattr(pl, dtype))
        (got,) = closed_pickle.loads(closed_pickle.dumps([x], True), True)
        assert (got.dtype, got.shape, got.tolist()) == (x.dtype, x.shape, x.tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_torch_s_tensors_pass(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    importlib.import_module("paceline.engines.torch.objects")
    for x in (torch.ones(2, 3).t(), torch.zeros(()), torch.zeros(0, 4)):
        x = x.to(getattr(torch, dtype))
        got, size = closed_pickle.loads(closed_pickle.dumps((x, x.shape), True), True)
        assert torch.equal(got, x)
        assert (got.dtype, size) == (x.dtype, x.shape)
    with pytest.raises(TypeError, match="does not pass between machines"):
        closed_pickle.loads(pickle.dumps(torch.ones(2)), True)  # would call torch.load


class Evil:
    """Runs a command in whoever reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /nothing/of/the/kind",)


class Other:
    """Any class of a user."""


REFUSED = [
    (Evil(), "posix.system"),
    ([Other()], "Other"),
    (np.array([Evil()], dtype=object), "posix.system"),
    (lambda: 0, None),
    (print, "builtins.print"),
    (closed_pickle.loads, "paceline.distributed.closed_pickle.loads"),
    (ValueError("x"), "builtins.ValueError"),
]


@pytest.mark.parametrize(("value", "name"), REFUSED, ids=lambda v: type(v).__name__)
def test_everything_else_is_refused_where_it_is_sent(value: Any, name: str | None) -> None:
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)) as caught:
        closed_pickle.dumps(value, True)
    assert name is None or name in str(caught.value)


@pytest.mark.parametrize("value", [Evil(), print], ids=lambda v: type(v).__name__)
def test_and_refused_where_it_is_read(value: Any) -> None:
    with pytest.raises(TypeError, match="does not pass between machines"):
        closed_pickle.loads(pickle.dumps(value), True)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(closed_pickle.SWITCH, raising=False)
    assert not closed_pickle.is_open()
    monkeypatch.setenv(closed_pickle.SWITCH, "1")
    assert closed_pickle.is_open()
    assert isinstance(closed_pickle.loads(closed_pickle.dumps(Other(), False), False), Other)
