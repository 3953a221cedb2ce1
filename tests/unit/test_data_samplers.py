# SPDX-License-Identifier: Apache-2.0
"""Samplers: which sample goes where; equal to PyTorch in all index arithmetic."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline import _C
from paceline.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


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


def test_weighted_sampler_refuses() -> None:
    with pytest.raises(ValueError, match="num_samples"):
        WeightedRandomSampler([1.0], 0)
    with pytest.raises(ValueError, match="replacement"):
        WeightedRandomSampler([1.0], 1, replacement=1)
    with pytest.raises(ValueError, match="1d sequence"):
        WeightedRandomSampler([[1.0]], 1)
    assert sorted(WeightedRandomSampler([1.0, 2.0, 3.0], 3, replacement=False)) == [0, 1, 2]


@given(st.integers(1, 60), st.integers(1, 7), st.booleans(), st.integers(0, 5))
def test_an_epoch_has_each_sample_once_or_its_padding(n, world, drop_last, epoch) -> None:
    samplers = [
        DistributedSampler(range(n), world, rank, seed=5, drop_last=drop_last)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert shares == [list(sampler) for sampler in samplers]  # the same order on a repeat
    assert {len(share) for share in shares} == {len(samplers[0])}
    order = [i for step in zip(*shares, strict=True) for i in step]
    whole = n // world * world if drop_last else n
    assert len(set(order[:whole])) == whole  # each once, and then the start again
    assert all(order[whole + i] == order[i % n] for i in range(len(order) - whole))


@given(st.integers(0, 40), st.integers(1, 9), st.booleans())
def test_batches_as_pytorch(n: int, size: int, drop_last: bool) -> None:
    data = pytest.importorskip("torch").utils.data
    theirs = data.DataLoader(range(n), batch_size=size, drop_last=drop_last)
    own = paceline.utils.data.DataLoader(range(n), batch_size=size, drop_last=drop_last)
    assert [b.tolist() for b in own] == [b.tolist() for b in theirs]
    assert len(own) == len(theirs)


@given(st.integers(1, 30), st.integers(1, 70), st.booleans())
def test_random_sampler_covers(n: int, wanted: int, replacement: bool) -> None:
    sampler = RandomSampler(range(n), replacement, wanted)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == wanted
    assert set(drawn) <= set(range(n))
    if not replacement:
        for at in range(0, wanted, n):  # round after round, each sample once in each
            part = drawn[at : at + n]
            assert len(set(part)) == len(part)
