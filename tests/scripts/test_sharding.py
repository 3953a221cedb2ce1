# SPDX-License-Identifier: Apache-2.0
"""Which samples each rank reads, against a plain model of the documented rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.data_sharding import BatchShards, Epoch, ItemShards, SampleShards, Share
from paceline.state import split_share

sizes = st.integers(0, 40)
worlds = st.integers(1, 5)
batches = st.integers(1, 6)


def _shards(kind, n, batch_size, world, **rules):
    items = [f"s{i}" for i in range(n)]
    shares = [Share(rank, world, **rules) for rank in range(world)]
    return [kind(lambda epoch: Epoch(n, None, items), n, batch_size, share) for share in shares]


def _names(batch):
    return [int(item[1:]) for item in batch]


def _rounds(n, batch_size, world, even, drop_last, split):
    """Plain model: the rank-wise lists of batches."""
    order = list(range(n))
    part = batch_size // world if split else batch_size
    ranks = [[] for _ in range(world)]
    for start in range(0, n, part * world):
        chunk = order[start : start + part * world]
        if len(chunk) < part * world:
            if drop_last:
                continue
            if even:
                head = order[: part * world]
                while len(chunk) < part * world:
                    chunk += head[: part * world - len(chunk)]
        for rank in range(world):
            piece = chunk[rank * part : (rank + 1) * part]
            if piece:
                ranks[rank].append(piece)
    return ranks


@given(sizes, batches, worlds, st.booleans(), st.booleans(), st.booleans())
def test_batches(n, batch_size, world, even, drop_last, split):
    if split:
        batch_size *= world
    shards = _shards(BatchShards, n, batch_size, world, even=even, drop_last=drop_last, split=split)
    read = [[_names(batch) for batch in shard] for shard in shards]
    assert read == _rounds(n, batch_size, world, even, drop_last, split)
    assert [len(shard) for shard in shards] == [len(batches) for batches in read]
    # What gather_for_metrics keeps is every sample once.
    kept = []
    longest = max(len(batches) for batches in read)
    for at in range(longest):
        counts = shards[0].tail_counts if at == longest - 1 else None
        for rank, batches_of in enumerate(read):
            batch = batches_of[at] if at < len(batches_of) else []
            kept += batch if counts is None else batch[: counts[rank]]
    if not drop_last:
        assert sorted(kept) == list(range(n))


@given(sizes, batches, worlds, st.booleans())
def test_samples(n, batch_size, world, drop_last):
    shards = _shards(SampleShards, n, batch_size, world, drop_last=drop_last)
    read = [[_names(batch) for batch in shard] for shard in shards]
    own = n // world if drop_last else -(-n // world)
    for rank, batches_of in enumerate(read):
        flat = sum(batches_of, [])
        assert flat == [(rank + i * world) % n for i in range(own)][: len(flat)]
        assert len(flat) == own - (own % batch_size if drop_last else 0)
        assert len(shards[rank]) == len(batches_of)
    counts = shards[0].tail_counts
    if not drop_last:
        kept = [sample for batches_of in read for batch in batches_of[:-1] for sample in batch]
        for rank, batches_of in enumerate(read):
            last = batches_of[-1] if batches_of else []
            kept += last if counts is None else last[: counts[rank]]
        assert sorted(kept) == list(range(n))


@given(sizes, worlds, st.booleans())
def test_items(n, world, even):
    shards = [
        ItemShards(lambda epoch: Epoch(n, None, list(range(n))), n, Share(rank, world, even))
        for rank in range(world)
    ]
    read = [list(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [len(items) for items in read]
    for rank, items in enumerate(read):
        real = list(range(rank, n, world))
        assert items[: len(real)] == real
        assert len(items) == (-(-n // world) if even else len(real))


def test_distributed_sampler_of_twelve_samples_and_four_ranks():
    shards = _shards(SampleShards, 12, 3, 4)
    assert [_names(next(iter(s))) for s in shards] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_split_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        _shards(BatchShards, 8, 3, 2, split=True)


@given(st.lists(st.integers()), worlds, st.booleans())
def test_split_between_processes(items, world, padded):
    shares = [split_share(items, rank, world, padded) for rank in range(world)]
    longest = -(-len(items) // world)
    if padded and items:
        assert {len(share) for share in shares} == {longest}
        extra = len(items) % world or world
        shares = [s if r < extra else s[: longest - 1] for r, s in enumerate(shares)]
    assert sum(shares, []) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
