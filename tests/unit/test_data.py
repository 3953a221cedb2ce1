# SPDX-License-Identifier: Apache-2.0
"""Data sets, samplers, batches and loaders."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline import _C
from paceline.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
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


# -- samplers ---------------------------------------------------------------------------------


def _shares(n: int, world: int, drop_last: bool, order: list[int] | None) -> list[list[int]]:
    given = None if order is None else paceline.tensor(order, dtype=paceline.int64)
    return [
        _C.distributed_indices(n, world, rank, drop_last, given).tolist() for rank in range(world)
    ]


def test_distributed_sampler_of_the_tutorial() -> None:
    data = list(range(12))
    shares = [list(DistributedSampler(data, 4, rank, shuffle=False)) for rank in range(4)]
    assert shares == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


@given(st.integers(1, 50), st.integers(1, 9), st.booleans())
def test_distributed_indices(n: int, world: int, drop_last: bool) -> None:
    order = list(reversed(range(n)))
    shares = _shares(n, world, drop_last, order)
    # PyTorch's rule, spelled out.
    padded = list(order)
    if drop_last:
        padded = padded[: n // world * world]
    else:
        while len(padded) % world:
            padded.append(order[(len(padded) - n) % n])
    assert shares == [padded[rank::world] for rank in range(world)]


@pytest.mark.parametrize("n", [1, 3, 10, 12])
@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_as_pytorch(n: int, drop_last: bool) -> None:
    data = pytest.importorskip("torch").utils.data
    for world in (1, 2, 4, 5):
        for rank in range(world):
            options = {"shuffle": False, "drop_last": drop_last}
            own = DistributedSampler(range(n), world, rank, **options)
            theirs = data.DistributedSampler(range(n), world, rank, **options)
            if n < world and drop_last:
                assert list(own) == []
                continue
            assert list(own) == list(theirs)
            assert (len(own), own.total_size) == (len(theirs), theirs.total_size)


def test_distributed_sampler_shuffles_alike_and_by_epoch() -> None:
    samplers = [DistributedSampler(range(10), 2, rank, seed=3) for rank in range(2)]
    first = [list(s) for s in samplers]
    assert sorted(chain(*first)) == list(range(10))
    assert [list(s) for s in samplers] == first
    for s in samplers:
        s.set_epoch(1)
    second = [list(s) for s in samplers]
    assert second != first
    assert sorted(chain(*second)) == list(range(10))
    with pytest.raises(ValueError, match="Invalid rank"):
        DistributedSampler(range(3), 2, 2)


def _by_hand(n, size, world, rank, drop_last, even, split):
    """What Accelerate's BatchSamplerShard gives, spelled out over the looped order."""
    part = size // world if split else size
    batches = [list(range(at, min(at + size, n))) for at in range(0, n, size)]
    if drop_last:
        batches = [b for b in batches if len(b) == size]
        if not split:
            batches = batches[: len(batches) // world * world]
    elif even and n:
        loop = list(range(n))[: size if split else size * world]
        flat = list(range(n))
        full = size if split else size * world
        while len(flat) % full:
            flat.append(loop[(len(flat) - n) % len(loop)])
        batches = [flat[at : at + size] for at in range(0, len(flat), size)]
    if split:
        parts = [b[rank * part : (rank + 1) * part] for b in batches]
        return [b for b in parts if b]
    return batches[rank::world]


@given(
    st.integers(0, 40), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_shard_batches(n, size, world, drop_last, even, split) -> None:
    if split:
        size *= world
    for rank in range(world):
        flat, offsets = _C.shard_batches(n, size, world, rank, drop_last, even, split, None)
        flat, offsets = flat.tolist(), offsets.tolist()
        got = [flat[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
        assert got == _by_hand(n, size, world, rank, drop_last, even, split)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_shard_batches_as_accelerate(split: bool, even: bool, drop_last: bool) -> None:
    shard = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    data = pytest.importorskip("torch").utils.data
    for world in (1, 2, 3):
        size = 3 * world if split else 3
        for n in range(1, 25):
            for rank in range(world):
                inner = data.BatchSampler(data.SequentialSampler(range(n)), size, drop_last)
                theirs = list(shard(inner, world, rank, split_batches=split, even_batches=even))
                flat, offsets = _C.shard_batches(n, size, world, rank, drop_last, even, split, None)
                flat, offsets = flat.tolist(), offsets.tolist()
                own = [flat[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
                assert own == [b for b in theirs if b]


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 1, 0, False, None), (3, 0, 0, False, None), (3, 2, 2, False, None),
        (3, 2, -1, False, None), (3, 1, 0, False, "order"),
    ],
)  # fmt: skip
def test_distributed_indices_refuses(arguments) -> None:
    if arguments[-1] == "order":
        arguments = (*arguments[:-1], paceline.arange(2))
    with pytest.raises(ValueError, match="distributed_indices"):
        _C.distributed_indices(*arguments)


def test_shard_batches_refuses() -> None:
    with pytest.raises(ValueError, match="split_batches"):
        _C.shard_batches(4, 3, 2, 0, False, True, True, None)
    with pytest.raises(ValueError, match="batch_size"):
        _C.shard_batches(4, 0, 2, 0, False, True, False, None)
    with pytest.raises(ValueError, match="order"):
        _C.shard_batches(2, 1, 1, 0, False, True, False, paceline.ones(2))
    with pytest.raises(TypeError):
        _C.shard_batches(2, 1)


def test_random_samplers() -> None:
    paceline.manual_seed(0)
    sampler = RandomSampler(range(50))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(50))
    assert first != second
    paceline.manual_seed(0)
    assert list(RandomSampler(range(50))) == first
    fixed = paceline.Generator().manual_seed(1)
    with_generator = list(RandomSampler(range(5), generator=fixed))
    fixed.manual_seed(1)
    assert list(RandomSampler(range(5), generator=fixed)) == with_generator
    more = list(RandomSampler(range(3), num_samples=7))
    assert len(more) == 7
    assert sorted(more[:3]) == sorted(more[3:6]) == [0, 1, 2]
    assert len(set(RandomSampler(range(10**6), replacement=True, num_samples=5))) <= 5
    assert sorted(SubsetRandomSampler([7, 9])) == [7, 9]
    assert set(WeightedRandomSampler([0.0, 1.0], 9)) == {1}
    with pytest.raises(ValueError, match="num_samples"):
        RandomSampler([1], num_samples=0)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [0, 1, 6, 7])
def test_batch_sampler(n: int, drop_last: bool) -> None:
    batches = BatchSampler(SequentialSampler(range(n)), 3, drop_last)
    listed = list(batches)
    assert listed == [b.tolist() for b in batches.index_batches()]
    assert len(batches) == len(listed)
    assert all(len(b) == 3 for b in listed[:-1])
    for bad in (0, True, 1.5):
        with pytest.raises(ValueError, match="batch_size"):
            BatchSampler(SequentialSampler(range(n)), bad, drop_last)


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


# -- loaders ----------------------------------------------------------------------------------


def test_bare_tensor() -> None:
    x = paceline.randn(100, 10)
    loader = DataLoader(x, batch_size=10)
    batches = list(loader)
    assert len(loader) == len(batches) == 10
    assert paceline.equal(paceline.cat(batches), x)
    batches[0].zero_()
    assert x[0].abs().sum().item() > 0


def test_arrays_and_lists() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    assert [b.tolist() for b in DataLoader(rows, batch_size=2)] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert [b.tolist() for b in DataLoader([1, 2, 3], batch_size=2)] == [[1, 2], [3]]
    names = np.array(["a", "b"], dtype=object)
    assert list(DataLoader(list(names))) == [["a"], ["b"]]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_one_gather_is_the_same_as_sample_by_sample(shuffle: bool, drop_last: bool) -> None:
    data = TensorDataset(paceline.randn(11, 3), paceline.arange(11))
    options = {"batch_size": 4, "shuffle": shuffle, "drop_last": drop_last}
    for whole in (data, Subset(data, [5, 3, 3, 8, 1]), Subset(Subset(data, range(9)), [8, 0])):
        paceline.manual_seed(2)
        fast = list(DataLoader(whole, **options))
        paceline.manual_seed(2)
        slow = list(DataLoader(whole, collate_fn=lambda s: default_collate(s), **options))
        assert [len(b) for b in fast] == [2] * len(slow)
        for a, b in zip(fast, slow, strict=True):
            assert all(paceline.equal(x, y) for x, y in zip(a, b, strict=True))


def test_dictionaries_and_own_collate() -> None:
    def collate(samples):
        return {"x": paceline.stack([s["x"] for s in samples]), "n": len(samples)}

    (batch,) = DataLoader(Squares(3), batch_size=3, collate_fn=collate, pin_memory=True)
    assert batch["x"].shape == (3, 2)
    assert batch["n"] == 3
    first, second = DataLoader(Squares(3), batch_size=2)
    assert first["i"].tolist() == [0, 1]
    assert second["x"].tolist() == [[2, 4]]


def test_shuffle_changes_by_epoch_and_repeats_with_the_seed() -> None:
    loader = DataLoader(paceline.arange(20), batch_size=20, shuffle=True)
    paceline.manual_seed(1)
    first, second = next(iter(loader)).tolist(), next(iter(loader)).tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    paceline.manual_seed(1)
    assert next(iter(loader)).tolist() == first


def test_samplers_of_ones_own() -> None:
    x = paceline.arange(6)
    assert [b.tolist() for b in DataLoader(x, sampler=[5, 0, 1], batch_size=2)] == [[5, 0], [1]]
    chosen = DataLoader(x, batch_sampler=[[1], [2, 3], paceline.tensor([0, 5])])
    assert [b.tolist() for b in chosen] == [[1], [2, 3], [0, 5]]
    assert len(chosen) == 3
    assert chosen.batch_size is None
    one_by_one = DataLoader([np.ones(2), 3], batch_size=None)
    assert isinstance(next(iter(one_by_one)), paceline.Tensor)
    assert len(one_by_one) == 2
    share = DataLoader(x, batch_size=2, sampler=DistributedSampler(x, 2, 1, shuffle=False))
    assert [b.tolist() for b in share] == [[1, 3], [5]]


def test_streams() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(5))

    assert [b.tolist() for b in DataLoader(Stream(), batch_size=2)] == [[0, 1], [2, 3], [4]]
    assert len(list(DataLoader(Stream(), batch_size=2, drop_last=True))) == 2
    assert list(DataLoader(Stream(), batch_size=None)) == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError):
        len(DataLoader(Stream()))
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(), shuffle=True)


def test_loader_refuses() -> None:
    x = paceline.arange(4)
    cases = [
        (NotImplementedError, "num_workers=0", {"num_workers": 4}),
        (ValueError, "num_workers", {"num_workers": -1}),
        (ValueError, "prefetch_factor", {"prefetch_factor": 2}),
        (ValueError, "persistent_workers", {"persistent_workers": True}),
        (ValueError, "timeout", {"timeout": -1}),
        (ValueError, "sampler", {"sampler": [0], "shuffle": True}),
        (ValueError, "batch_sampler", {"batch_sampler": [[0]], "drop_last": True}),
        (ValueError, "batch_size", {"batch_size": 0}),
        (ValueError, "batch_size", {"batch_size": None, "drop_last": True}),
    ]
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            DataLoader(x, **options)
    with pytest.raises(IndexError):
        list(DataLoader(x, sampler=[9]))


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
