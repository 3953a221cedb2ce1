# SPDX-License-Identifier: Apache-2.0
"""Streams, and batches that rank 0 reads for all, on one, two and three processes."""

from __future__ import annotations

import pytest

from ways import run_ways


def _dispatched() -> None:
    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data

    class Numbers(data.IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            assert RANK == 0, "only rank 0 reads"
            return iter(range(self.n))

        def __len__(self):
            return self.n

    def read(loader, **config):
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
        loader = accelerator.prepare(loader)
        own, kept, ends = [], [], []
        for batch in loader:
            own.append(batch.tolist())
            kept += accelerator.gather_for_metrics(batch).tolist()
            ends.append(accelerator.gradient_state.end_of_dataloader)
        assert ends == [False] * (len(ends) - 1) + [True] * (len(ends) > 0)
        assert len(own) == len(loader)
        assert loader.total_dataset_length is not None
        return own, kept

    out(read(data.DataLoader(Numbers(10), batch_size=4)) if WORLD > 1 else None)
    items = torch.arange(10)
    out(read(data.DataLoader(items, batch_size=4), dispatch_batches=True))
    for n in (0, 1, 3, 8, 9, 12, 13):
        for options in ({}, {"split_batches": True}):
            size = 2 * WORLD if options else 2
            stream = data.DataLoader(Numbers(n), batch_size=size)
            if WORLD > 1:
                own, kept = read(stream, **options)
                assert kept == list(range(n)), (n, options, kept)
            indexed = data.DataLoader(torch.arange(n), batch_size=size)
            again, kept = read(indexed, dispatch_batches=True, **options)
            assert kept == list(range(n)), (n, options, kept)
            assert WORLD == 1 or again == own
        dropping = data.DataLoader(Numbers(n), batch_size=2, drop_last=True)
        if WORLD > 1:
            own, kept = read(dropping)
            assert kept == list(range(n - n % (2 * WORLD))), (n, kept)
    shuffled = data.DataLoader(items, batch_size=2, shuffle=True)
    own, kept = read(shuffled, dispatch_batches=True)
    assert sorted(kept) == list(range(10))
    if WORLD > 1:
        uneven = data.DataLoader(items, batch_size=4)
        accelerator = Accelerator(
            dataloader_config=DataLoaderConfiguration(dispatch_batches=True, even_batches=False)
        )
        out([batch.tolist() for batch in accelerator.prepare(uneven)])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rank_zero_reads_for_all(way: str, world: int) -> None:
    ranks = run_ways(way, world, _dispatched)
    if world == 1:
        assert ranks[0].outs[1] == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], list(range(10))]
    if world == 2:
        for at in (0, 1):
            assert [rank.outs[at][0] for rank in ranks] == [
                [[0, 1, 2, 3], [8]], [[4, 5, 6, 7], [9]]
            ]  # fmt: skip
    if world == 3:
        assert [rank.outs[0][0] for rank in ranks] == [
            [[0, 1, 2, 3]],
            [[4, 5, 6, 7]],
            [[8, 9, 0, 1]],
        ]
        assert [rank.outs[2] for rank in ranks] == [[[0, 1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]]


def _odd_batches() -> None:
    import collections
    import signal

    import pytest

    from paceline import Accelerator, DataLoaderConfiguration
    from paceline.errors import RemoteError
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
    Pair = collections.namedtuple("Pair", "x name", module="__main__")
    globals()["Pair"] = Pair  # where pickle finds it

    class Sizes:  # batches of different sizes
        def __iter__(self):
            return iter([[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]])

        def __len__(self):
            return 5

    loader = accelerator.prepare(data.DataLoader(torch.arange(11), batch_sampler=Sizes()))
    out([accelerator.gather_for_metrics(batch).tolist() for batch in loader])

    def nested(samples):
        return {
            "pair": Pair(torch.tensor(samples), [str(s) for s in samples]),
            "more": [(torch.tensor(samples), torch.tensor([[s, s] for s in samples]))],
            "scalar": torch.tensor(len(samples)),
            "text": "of the batch",
            "none": None,
        }

    loader = accelerator.prepare(data.DataLoader(range(5), batch_size=1, collate_fn=nested))
    for batch in loader:
        x, names = batch["pair"]
        assert names == [str(i) for i in x.tolist()]
        assert batch["more"][0][1].tolist() == [[i, i] for i in x.tolist()]
        assert (batch["text"], batch["none"]) == ("of the batch", None)
        out(x.tolist())

    # Padded to the longest of the batch: trailing dimensions differ between the ranks.
    def padded(samples):
        return torch.zeros(len(samples), max(samples) + 1)

    loader = accelerator.prepare(data.DataLoader(range(7), batch_size=2, collate_fn=padded))
    out([list(batch.shape) for batch in loader])

    def texts(samples):
        return [str(sample) for sample in samples]

    loader = accelerator.prepare(data.DataLoader(range(5), batch_size=2, collate_fn=texts))
    out([accelerator.gather_for_metrics(batch) for batch in loader])

    calls = []

    def cut(batch, part, process_index=None, num_processes=None):
        calls.append((part.start, part.stop, process_index, num_processes))
        return batch[process_index::num_processes]

    loader = accelerator.prepare_data_loader(
        data.DataLoader(torch.arange(6), batch_size=2), slice_fn_for_dispatch=cut
    )
    out([batch.tolist() for batch in loader])
    assert WORLD == 1 or calls[0] == (2 * RANK, 2 * RANK + 2, RANK, WORLD)

    class Whole:  # neither tensors nor a list of samples
        pass

    globals()["Whole"] = Whole
    Whole.__qualname__ = "Whole"
    split = Accelerator(
        dataloader_config=DataLoaderConfiguration(dispatch_batches=True, split_batches=True)
    )
    whole = data.DataLoader(range(WORLD), batch_size=WORLD, collate_fn=lambda samples: Whole())
    cases = [
        (split.prepare(whole), "split_batches cannot divide a Whole"),
        (accelerator.prepare_data_loader(whole, slice_fn_for_dispatch=cut), "needs batches with"),
    ]
    for loader, text in cases if WORLD > 1 else []:
        with pytest.raises(ValueError if RANK == 0 else RemoteError, match=text):
            next(iter(loader))
    if WORLD > 1:  # but whole batches go out as they are
        assert [type(batch) for batch in accelerator.prepare(whole)] == [Whole]

    def broken(samples):
        if 3 in samples:
            raise KeyError("no sample 3")
        return torch.tensor(samples)

    signal.alarm(20)  # the others must not wait for ever
    loader = accelerator.prepare(data.DataLoader(range(9), batch_size=1, collate_fn=broken))
    seen = []

    def follow():
        for batch in loader:
            seen.extend(batch.tolist())

    with pytest.raises(KeyError if RANK == 0 else RemoteError, match="no sample 3"):
        follow()
    out(seen)
    accelerator.wait_for_everyone()  # the group is whole
    plain = Accelerator(device_placement=False)
    with pytest.raises(ValueError, match="dispatch_batches=True needs"):
        Accelerator(
            device_placement=False,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=True),
        ).prepare(loader.base)
    assert plain.prepare(loader.base).device is None


@pytest.mark.parametrize("world", [1, 2, 3])
def test_row_11_batches_of_any_size_and_structure_and_errors_reach_all(
    way: str, world: int
) -> None:
    ranks = run_ways(way, world, _odd_batches)
    for rank in ranks:
        assert sum(rank.outs[0], []) == list(range(11))
    if world == 2:
        first, second = ranks
        assert (first.outs[1:4], second.outs[1:4]) == ([[0], [2], [4]], [[1], [3], [0]])
        assert first.outs[4] == [[2, 2], [2, 6]]
        assert second.outs[4] == [[2, 4], [1, 7]]
        assert first.outs[5] == second.outs[5] == [["0", "1", "2", "3"], ["4"]]
        assert first.outs[6] == [[0, 2], [4]]
        assert second.outs[6] == [[1, 3], [5]]
        assert [rank.outs[7] for rank in ranks] == [[0], [1]]


def _shards() -> None:
    import random

    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data
    config = DataLoaderConfiguration(dispatch_batches=False)
    ragged = DataLoaderConfiguration(dispatch_batches=False, even_batches=False)

    class Numbers(data.IterableDataset):
        epochs = []

        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(range(self.n))

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    def read(loader, config=config):
        accelerator = Accelerator(dataloader_config=config)
        loader = accelerator.prepare(loader)
        own, kept, ends = [], [], []
        for batch in loader:
            own.append(batch.tolist())
            if config.even_batches:
                kept += accelerator.gather_for_metrics(batch).tolist()
            ends.append(loader.end_of_dataloader)
        assert ends == [False] * (len(ends) - 1) + [True] * (len(ends) > 0)
        return own, kept

    out(read(data.DataLoader(Numbers(10), batch_size=4)))
    out(read(data.DataLoader(Numbers(9), batch_size=2), ragged)[0])
    for n in (0, 1, 3, 8, 9, 12, 13):
        assert read(data.DataLoader(Numbers(n), batch_size=3))[1] == list(range(n)), n
        dropping = data.DataLoader(Numbers(n), batch_size=2, drop_last=True)
        assert read(dropping)[1] == list(range(n - n % (2 * WORLD)))
        split = DataLoaderConfiguration(dispatch_batches=False, split_batches=True)
        assert read(data.DataLoader(Numbers(n), batch_size=2 * WORLD), split)[1] == list(range(n))
    single = data.DataLoader(Numbers(2 * WORLD), batch_size=None, collate_fn=torch.tensor)
    assert read(single, ragged)[0] == [RANK, WORLD + RANK]
    assert 0 in Numbers.epochs

    class Shuffled(Numbers):
        def __iter__(self):
            order = list(range(self.n))
            random.shuffle(order)
            return iter(order)

    random.seed(RANK)  # the ranks disagree, yet read the same
    accelerator = Accelerator(dataloader_config=config)
    loader = accelerator.prepare(data.DataLoader(Shuffled(11), batch_size=2))
    epochs = []
    for _ in range(2):
        found = [accelerator.gather_for_metrics(batch).tolist() for batch in loader]
        epochs.append(sum(found, []))
        assert sorted(epochs[-1]) == list(range(11)), epochs
    assert epochs[0] != epochs[1]

    class Divides(Numbers):  # as the streams of `datasets` do
        n_shards = 6

        def __init__(self, items):
            self.items = items

        def __iter__(self):
            return iter(self.items)

        def shard(self, num_shards, index):
            return Divides(self.items[index::num_shards])

    out(read(data.DataLoader(Divides(list(range(6))), batch_size=2), ragged)[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_streams_that_every_rank_reads(way: str, world: int) -> None:
    ranks = run_ways(way, world, _shards)
    if world == 2:
        assert [rank.outs[0][0] for rank in ranks] == [
            [[0, 1, 2, 3], [8, 9, 0, 1]], [[4, 5, 6, 7], [2, 3, 4, 5]]
        ]  # fmt: skip
        assert [rank.outs[1] for rank in ranks] == [
            [[0, 1], [4, 5], [8]], [[2, 3], [6, 7]]
        ]  # fmt: skip
        assert [rank.outs[2] for rank in ranks] == [[[0, 2], [4]], [[1, 3], [5]]]
