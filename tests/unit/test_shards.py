# SPDX-License-Identifier: Apache-2.0
"""Which samples each rank reads: pure arithmetic, against plain models and against Accelerate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.sharding.item_shards import ItemShards, ListShards
from paceline.sharding.shards import BatchShards, Epoch, SampleShards, Share
from paceline.sharding.streams import StreamShard
from paceline.state import split_share

sizes = st.integers(0, 40)
worlds = st.integers(1, 5)
batches = st.integers(1, 6)


def _epoch(n, shuffle=False):
    return Epoch(n, None, [(i * 7 + 3) % n if shuffle and n % 7 else i for i in range(n)])


def _shards(kind, epoch, batch_size, world, taken=0, **rules):
    made = [kind(batch_size, Share(rank, world, **rules)) for rank in range(world)]
    for shard in made:
        shard.start(epoch, taken)
    return made


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


def _real(shards):
    """What gather_for_metrics keeps: the real samples of all ranks, sorted."""
    kept = []
    for shard in shards:
        for at, batch in enumerate(shard):
            valid = shard.valid(at)
            kept += batch if valid is None else batch[:valid]
    return sorted(kept)


@given(sizes, batches, worlds, st.booleans(), st.booleans(), st.booleans())
def test_batches(n, batch_size, world, even, drop_last, split):
    if split:
        batch_size *= world
    rules = {"even": even, "drop_last": drop_last, "split": split}
    shards = _shards(BatchShards, _epoch(n), batch_size, world, **rules)
    read = [list(shard) for shard in shards]
    assert read == _rounds(n, batch_size, world, even, drop_last, split)
    assert [shard.batches_of(n) for shard in shards] == [len(batches) for batches in read]
    assert [shard.count for shard in shards] == [len(batches) for batches in read]
    if not drop_last:
        assert _real(shards) == list(range(n)), "each sample once"
    assert read == [list(shard) for shard in shards], "the same again"


@given(sizes, batches, worlds, st.booleans())
def test_samples(n, batch_size, world, drop_last):
    shards = _shards(SampleShards, _epoch(n), batch_size, world, drop_last=drop_last)
    own = n // world if drop_last else -(-n // world)
    for rank, shard in enumerate(shards):
        flat = sum(shard, [])
        assert flat == [(rank + i * world) % n for i in range(own)][: len(flat)]
        assert len(flat) == own - (own % batch_size if drop_last else 0)
        assert shard.count == len(list(shard))
    if not drop_last:
        assert _real(shards) == list(range(n))


@given(sizes, worlds, st.booleans())
def test_items(n, world, even):
    shards = [ItemShards(Share(rank, world, even)) for rank in range(world)]
    for rank, shard in enumerate(shards):
        shard.start(Epoch(n, None, list(range(n))))
        items = list(shard)
        real = list(range(rank, n, world))
        assert items[: len(real)] == real
        assert len(items) == shard.count == (-(-n // world) if even else len(real))
        assert [at for at in range(shard.count) if shard.valid(at) is None] == list(
            range(len(real))
        )


kinds = st.sampled_from([BatchShards, SampleShards])


@given(kinds, sizes, batches, worlds, st.booleans(), st.booleans(), st.integers(0, 6))
def test_taken_up_in_the_middle_the_rest_is_the_same(
    kind, n, batch_size, world, even, drop_last, first
):
    epoch = _epoch(n, shuffle=True)
    whole = _shards(kind, epoch, batch_size, world, even=even, drop_last=drop_last)
    for shard in whole:
        undisturbed = list(shard)
        valid = [shard.valid(at) for at in range(shard.count)]
        shard.start(epoch, 0, first)
        assert list(shard) == undisturbed[first:]
        assert [shard.valid(at) for at in range(shard.count)] == valid


@given(kinds, kinds, sizes, batches, batches, worlds, worlds, st.booleans(), st.integers(0, 6))
def test_taken_up_by_other_ranks_each_sample_is_seen_once(
    before, after, n, size, new_size, world, new_world, even, rounds
):
    epoch = _epoch(n, shuffle=True)
    old = _shards(before, epoch, size, world, even=even)
    rounds = min(rounds, min(shard.count for shard in old))
    seen = []
    for shard in old:
        for at, batch in enumerate(shard):
            if at < rounds:
                seen += batch if shard.valid(at) is None else batch[: shard.valid(at)]
    new = _shards(after, epoch, new_size, new_world, taken=old[0].taken(rounds), even=even)
    assert sorted(seen + _real(new)) == list(range(n))


@given(sizes, batches, worlds, st.booleans(), st.booleans(), st.booleans())
def test_batches_of_a_sampler_equal_to_accelerates(n, size, world, even, drop_last, split):
    accelerate = pytest.importorskip("accelerate.data_loader")
    from torch.utils.data import BatchSampler

    if split:
        size *= world
    sampler = BatchSampler(range(n), size, drop_last)
    items = [list(batch) for batch in sampler]
    for rank in range(world):
        theirs = accelerate.BatchSamplerShard(sampler, world, rank, split, even)
        for shard in (
            ListShards(size, Share(rank, world, even, drop_last, split)),
            BatchShards(size, Share(rank, world, even, drop_last, split)),
        ):
            whole = Epoch(len(items), None, items) if type(shard) is ListShards else _epoch(n)
            shard.start(whole)
            assert [list(batch) for batch in shard] == [list(batch) for batch in theirs]
            if even or not split:  # theirs counts a batch that a rank does not get
                assert shard.count == len(theirs)


@given(st.lists(st.integers(1, 5), max_size=12), worlds, st.booleans())
def test_batches_of_different_sizes_go_out_whole(lengths, world, even):
    items, start = [], 0
    for length in lengths:
        items.append(list(range(start, start + length)))
        start += length
    shards = [ListShards(None, Share(rank, world, even)) for rank in range(world)]
    for rank, shard in enumerate(shards):
        shard.start(Epoch(len(items), None, items))
        assert list(shard)[: len(items[rank::world])] == items[rank::world]
    assert _real(shards) == list(range(start))
    if even:
        assert len({shard.count for shard in shards}) == 1


@given(st.lists(st.integers(1, 5), max_size=12), worlds, st.booleans())
def test_batches_of_different_sizes_split(lengths, world, even):
    items, start = [], 0
    for length in lengths:
        items.append(list(range(start, start + length)))
        start += length
    shards = [ListShards(None, Share(rank, world, even, split=True)) for rank in range(world)]
    for shard in shards:
        shard.start(Epoch(len(items), None, items))
        assert shard.count == len(items) == shard.batches_of(len(items))
    assert _real(shards) == list(range(start))
    if even:
        assert len({tuple(len(batch) for batch in shard) for shard in shards}) == 1


@given(sizes, batches, worlds, st.booleans(), st.booleans())
def test_streams_equal_to_accelerates(n, size, world, drop_last, split):
    accelerate = pytest.importorskip("accelerate.data_loader")
    if split:
        size *= world
    part = size // world if split else size
    real = []
    for rank in range(world):
        theirs = accelerate.IterableDatasetShard(range(n), size, drop_last, world, rank, split)
        shard = StreamShard(range(n), part, Share(rank, world, True, drop_last, split))
        assert [sample for sample, _ in shard] == list(theirs)
        assert len(shard) == len(list(theirs))
        real += [sample for sample, is_real in shard if is_real]
    if not drop_last:
        assert sorted(real) == list(range(n))


@given(sizes, batches, worlds, st.booleans(), st.integers(0, 5), batches, worlds)
def test_streams_go_on_by_other_ranks(n, size, world, even, rounds, old_size, old_world):
    chunk = old_size * old_world
    real = []
    for rank in range(world):
        shard = StreamShard(range(n), size, Share(rank, world, even), [(rounds, chunk)])
        real += [sample for sample, is_real in shard if is_real]
    assert sorted(real) == list(range(min(n, rounds * chunk), n))


def test_distributed_sampler_of_twelve_samples_and_four_ranks():
    shards = _shards(SampleShards, _epoch(12), 3, 4)
    assert [next(iter(s)) for s in shards] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_split_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        BatchShards(3, Share(0, 2, split=True))


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
