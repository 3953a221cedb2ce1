# SPDX-License-Identifier: Apache-2.0
"""Data sets, splits, and batches made of samples."""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, namedtuple

import numpy as np
import pytest

import paceline
from paceline.utils.data import (
    ArrayDataset,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
    random_split,
)

Point = namedtuple("Point", "x y")


class Squares(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"i": i, "x": paceline.tensor([float(i), float(i * i)])}


# -- collating --------------------------------------------------------------------------------

SAMPLES = [
    [1, 2], [1.5, 2.5], [True, False], ["a", "b"], [b"x", b"y"],
    [{"a": 1, "b": [1.0, 2.0]}, {"a": 2, "b": [3.0, 4.0]}],
    [(1, 2.0), (3, 4.0)], [[1, 2], [3, 4]], [Point(1, 2), Point(3, 4)],
    [np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)],
    [np.float64(1), np.float64(2)], [np.int32(1), np.int32(2)], [np.arange(3), np.arange(3)],
    [OrderedDict(a=1), OrderedDict(a=2)],
]  # fmt: skip


def _plain(node):
    if isinstance(node, np.ndarray):
        return "array", node.tolist()
    if isinstance(node, (UserList, UserDict)):
        return type(node).__name__, _plain(node.data)
    if hasattr(node, "dtype"):
        return str(node.dtype).split(".")[1], tuple(node.shape), node.tolist()
    if isinstance(node, dict):
        return type(node).__name__, {k: _plain(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node).__name__, [_plain(v) for v in node]
    return node


@pytest.mark.parametrize("samples", SAMPLES, ids=str)
def test_collate_as_pytorch(samples: list[object]) -> None:
    data = pytest.importorskip("torch").utils.data
    assert _plain(default_collate(samples)) == _plain(data.default_collate(samples))


def test_collate_refuses() -> None:
    with pytest.raises(TypeError, match="default_collate"):
        default_collate([object(), object()])
    with pytest.raises(TypeError, match="default_collate"):
        default_collate([np.array(["a"]), np.array(["b"])])
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([[1], [1, 2]])
    with pytest.raises((RuntimeError, ValueError)):
        default_collate([paceline.ones(2), paceline.ones(3)])


# -- data sets


def test_data_sets() -> None:
    data = TensorDataset(paceline.arange(4), paceline.arange(4.0))
    assert data[2][0].item() == 2
    with pytest.raises(AssertionError, match="mismatch"):
        TensorDataset(paceline.ones(2), paceline.ones(3))
    joined = Squares(2) + Squares(3)
    assert isinstance(joined, ConcatDataset)
    assert [joined[i]["i"] for i in (0, 1, 2, 4, -1)] == [0, 1, 0, 2, 2]
    assert len(joined) == 5
    paceline.manual_seed(0)
    parts = random_split(range(10), [7, 3])
    assert sorted([*parts[0], *parts[1]]) == list(range(10))
    assert [len(p) for p in random_split(range(10), [0.5, 0.25, 0.25])] == [6, 2, 2]
    with pytest.raises(ValueError, match="Sum of input lengths"):
        random_split(range(10), [5, 4])


class Stream(IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self) -> int:
        return self.n


def test_streams_are_chained() -> None:
    chained = Stream(2) + Stream(3)
    assert isinstance(chained, ChainDataset)
    assert list(chained) == [0, 1, 0, 1, 2]
    assert len(chained) == 5
    assert [b.tolist() for b in DataLoader(chained, batch_size=4)] == [[0, 1, 0, 1], [2]]
    with pytest.raises(AssertionError, match="only supports IterableDataset"):
        list(ChainDataset([[1]]))
    with pytest.raises(AssertionError, match="does not support IterableDataset"):
        ConcatDataset([Stream(2)])


def test_stacked_data_sets() -> None:
    class Several(Dataset):
        def __getitems__(self, indices):
            return [i * 10 for i in indices]

        def __len__(self) -> int:
            return 3

    pairs = StackDataset([1, 2, 3], Several())
    assert len(pairs) == 3
    assert StackDataset([1, 2, 3], ["a", "b", "c"])[1] == (2, "b")
    assert [b[1].tolist() for b in DataLoader(pairs, batch_size=2)] == [[0, 10], [20]]
    named = StackDataset(x=[1, 2], y=["a", "b"])
    assert named[1] == {"x": 2, "y": "b"}
    assert next(iter(DataLoader(named, batch_size=2)))["y"] == ["a", "b"]
    for arguments, named_arguments, text in (
        (([1],), {"x": [1]}, "both types"),
        ((), {}, "At least one"),
        (([1], [1, 2]), {}, "Size mismatch"),
    ):
        with pytest.raises(ValueError, match=text):
            StackDataset(*arguments, **named_arguments)

    class Wrong(Several):
        def __getitems__(self, indices):
            return [0]

    with pytest.raises(ValueError, match="Expected 2, got 1"):
        list(DataLoader(StackDataset(Wrong()), batch_size=2))


def test_array_data_sets() -> None:
    data = ArrayDataset(np.arange(6.0).reshape(3, 2), paceline.arange(3))
    assert data[1][0].tolist() == [2, 3]
    assert len(data) == 3
    (batch,) = DataLoader(data, batch_size=3)
    assert [column.tolist() for column in batch] == [[[0, 1], [2, 3], [4, 5]], [0, 1, 2]]
    with pytest.raises(ValueError, match="ArrayDataset"):
        ArrayDataset(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="ArrayDataset"):
        ArrayDataset()


def test_a_subset_that_overrides_half_of_it() -> None:
    class Half(Subset):
        def __getitem__(self, i):
            return -self.dataset[self.indices[i]]

    with pytest.raises(NotImplementedError, match="Half overrides __getitem__"):
        Half([1, 2], [0])

    class Whole(Half):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    x = paceline.arange(4)
    (batch,) = DataLoader(Whole(x, [1, 3]), batch_size=2)
    assert batch.tolist() == [-1, -3]


def test_random_split_of_fractions() -> None:
    with pytest.warns(UserWarning, match="split at index 1 is 0"):
        sizes = [len(p) for p in random_split(range(3), [0.9999, 0.0001])]
    assert sizes == [3, 0]
    with pytest.raises(ValueError, match="Fraction at index 0"):
        random_split(range(3), [1.5, -0.5])
    fixed = paceline.Generator().manual_seed(4)
    first = [list(p) for p in random_split(range(9), [4, 5], fixed)]
    fixed.manual_seed(4)
    assert [list(p) for p in random_split(range(9), [4, 5], fixed)] == first


CONVERTED = [
    np.arange(3), np.float32(2), [np.arange(2), 1], (np.arange(2), "a"), {"a": np.ones(2)},
    Point(np.ones(1), 2), UserList([np.ones(1)]), UserDict(a=np.ones(1)), "text", b"raw", 3, None,
    np.array(["a"]), range(3),
]  # fmt: skip


@pytest.mark.parametrize("sample", CONVERTED, ids=repr)
def test_convert_as_pytorch(sample) -> None:
    data = pytest.importorskip("torch").utils.data
    own, theirs = default_convert(sample), data.default_convert(sample)
    assert repr(_plain(own)) == repr(_plain(theirs))
