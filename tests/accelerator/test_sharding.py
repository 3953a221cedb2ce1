# SPDX-License-Identifier: Apache-2.0
"""Which batches each process gets: the rows of FEATURES 1.10, on one, two and three processes."""

from __future__ import annotations

import pytest

from ways import run_ways


def _even_batches() -> None:
    from paceline import Accelerator
    from rankside import out
    from ways import torch

    accelerator = Accelerator()
    DataLoader = torch.utils.data.DataLoader
    found = []
    for n in (10, 3):
        loader = accelerator.prepare(DataLoader(torch.arange(n), batch_size=4))
        assert isinstance(loader, DataLoader)
        assert loader.batch_size == 4
        assert loader.total_batch_size == 4 * accelerator.num_processes
        assert loader.total_dataset_length == n
        gathered, metrics, own = [], [], []
        for batch in loader:
            own.append(batch.tolist())
            gathered.append(accelerator.gather(batch).tolist())
            metrics.append(accelerator.gather_for_metrics(batch).tolist())
        assert len(own) == len(loader)
        found.append([own, gathered[-1], metrics[-1], sum(metrics, [])])
    out(found)


def test_even_batches_loops_to_the_start(way: str) -> None:
    alone = run_ways(way, 1, _even_batches)[0].outs[0]
    assert alone[0] == [
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], [8, 9], [8, 9], list(range(10))
    ]  # fmt: skip
    two = [rank.outs[0] for rank in run_ways(way, 2, _even_batches)]
    assert [ten[0] for ten, _ in two] == [
        [[0, 1, 2, 3], [8, 9, 0, 1]],
        [[4, 5, 6, 7], [2, 3, 4, 5]],
    ]
    for ten, three in two:
        assert ten[1:] == [[8, 9, 0, 1, 2, 3, 4, 5], [8, 9], list(range(10))]
        assert three[1:] == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2], [0, 1, 2]]
    for rank in run_ways(way, 3, _even_batches):
        assert rank.outs[0][0][1:] == [list(range(10)) + [0, 1], list(range(10)), list(range(10))]


def _flags() -> None:
    import pytest

    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import WORLD, out
    from ways import torch

    DataLoader = torch.utils.data.DataLoader

    def read(n, batch_size, drop_last=False, **config):
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
        loader = DataLoader(torch.arange(n), batch_size=batch_size, drop_last=drop_last)
        loader = accelerator.prepare(loader)
        own = [batch.tolist() for batch in loader]
        assert len(own) == len(loader)
        return own

    out(read(9, 2, even_batches=False))
    out(read(10, 2 * WORLD, split_batches=True))
    out(read(10, 4, drop_last=True))
    accelerator = Accelerator(split_batches=True)
    assert accelerator.split_batches
    loader = accelerator.prepare(DataLoader(torch.arange(10), batch_size=2 * WORLD))
    assert loader.total_batch_size == loader.batch_size == 2 * WORLD
    out([batch.tolist() for batch in loader])
    if WORLD > 1:
        for size, text in ((2 * WORLD + 1, "multiple of the"), (None, "without batch_size")):
            with pytest.raises(ValueError, match=text):
                accelerator.prepare(DataLoader(torch.arange(10), batch_size=size))


def test_trap_1_split_batches_of_the_constructor_is_heard(way: str) -> None:
    """And even_batches=False, drop_last, and split_batches in the configuration."""
    (alone,) = run_ways(way, 1, _flags)
    assert alone.outs[0] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    first, second = run_ways(way, 2, _flags)
    assert first.outs[0] == [[0, 1], [4, 5], [8]]
    assert second.outs[0] == [[2, 3], [6, 7]]
    assert first.outs[1] == first.outs[3] == [[0, 1], [4, 5], [8, 9]]
    assert second.outs[1] == second.outs[3] == [[2, 3], [6, 7], [0, 1]]
    assert (first.outs[2], second.outs[2]) == ([[0, 1, 2, 3]], [[4, 5, 6, 7]])
    three = run_ways(way, 3, _flags)
    assert [rank.outs[1] for rank in three] == [
        [[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [0, 1]]
    ]  # fmt: skip


def _shuffled() -> None:
    import random

    from paceline import Accelerator, DataLoaderConfiguration
    from paceline.utils import set_seed
    from rankside import RANK, out
    from ways import torch

    data = torch.utils.data

    def epochs(loader, config=None, number=2, **options):
        accelerator = Accelerator(dataloader_config=config, **options)
        loader = accelerator.prepare(loader)
        read = []
        for _ in range(number):
            read.append(
                sum((accelerator.gather_for_metrics(batch).tolist() for batch in loader), [])
            )
        return read

    items = torch.arange(11)
    random.seed(RANK)  # the ranks disagree, as where a script sets no seed
    torch.manual_seed(100 + RANK)
    out(epochs(data.DataLoader(items, batch_size=2, shuffle=True)))
    config = DataLoaderConfiguration(use_seedable_sampler=False)
    out(epochs(data.DataLoader(items, batch_size=2, shuffle=True), config))
    config = DataLoaderConfiguration(data_seed=5)
    first = epochs(data.DataLoader(items, batch_size=2, shuffle=True), config)
    torch.manual_seed(7)
    assert first == epochs(data.DataLoader(items, batch_size=2, shuffle=True), config)
    out(first)
    generator = torch.Generator().manual_seed(3 + RANK)
    out(epochs(data.DataLoader(items, batch_size=2, shuffle=True, generator=generator)))
    out(epochs(data.DataLoader(items, 2, sampler=data.SubsetRandomSampler(range(11)))))

    class Unseeded:
        def __iter__(self):
            return iter(random.sample(range(11), 11))

        def __len__(self):
            return 11

    out(epochs(data.DataLoader(items, 2, sampler=Unseeded()), rng_types=["torch", "generator"]))
    weighted = data.WeightedRandomSampler([1.0] * 11, 11, replacement=False)
    out(epochs(data.DataLoader(items, 2, sampler=weighted)))
    set_seed(1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_agree_on_a_random_order(way: str, world: int) -> None:
    for rank in run_ways(way, world, _shuffled):
        for read in rank.outs:
            for epoch in read:
                assert sorted(epoch) == list(range(11))
            assert read[0] != read[1], "every epoch has an order of its own"


def _samplers() -> None:
    from paceline import Accelerator
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data
    accelerator = Accelerator()

    def read(loader, number=1):
        loader = accelerator.prepare(loader)
        return [
            [accelerator.gather_for_metrics(batch).tolist() for batch in loader]
            for _ in range(number)
        ]

    items = torch.arange(10)
    mine = data.DistributedSampler(items, num_replicas=WORLD, rank=RANK, shuffle=False)
    loader = accelerator.prepare(data.DataLoader(items, batch_size=2, sampler=mine))
    out([batch.tolist() for batch in loader])
    out(read(data.DataLoader(items, batch_size=2, sampler=mine)))
    shuffled = data.DistributedSampler(items, num_replicas=WORLD, rank=RANK, seed=4)
    out(read(data.DataLoader(items, batch_size=2, sampler=shuffled), 2))

    class Further(data.DistributedSampler):
        def __iter__(self):
            return iter([i for i in super().__iter__()])

    out(read(data.DataLoader(items, 2, sampler=Further(items, WORLD, RANK, shuffle=False))))

    class Buckets:  # of different sizes, and without batch_size
        epochs = []

        def __iter__(self):
            return iter([[0, 1, 2], [3], [4, 5], [6, 7, 8, 9]])

        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    out(read(data.DataLoader(items, batch_sampler=Buckets()), 2))
    assert sorted(set(Buckets.epochs)) == [0, 1], "set_epoch comes through"
    pairs = data.BatchSampler(data.SequentialSampler(items), 4, drop_last=False)
    out(read(data.DataLoader(items, batch_sampler=pairs)))
    # A batch sampler in the sampler's place, for data that gives whole batches.
    out(read(data.DataLoader(items, sampler=pairs, batch_size=None)))
    out(read(data.DataLoader(items, batch_size=None)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_row_8_no_sampler_is_shared_out_twice_and_every_sampler_is_right(
    way: str, world: int
) -> None:
    ranks = run_ways(way, world, _samplers)
    own = [sum(rank.outs[0], []) for rank in ranks]
    each = -(-10 // world)
    assert own == [[(r + i * world) % 10 for i in range(each)] for r in range(world)]
    for rank in ranks:
        for read in rank.outs[1:]:
            for epoch in read:
                flat = [
                    item for batch in epoch for item in (batch if type(batch) is list else [batch])
                ]
                assert sorted(flat) == list(range(10)), read
        assert rank.outs[2][0] != rank.outs[2][1]


def _without_a_placed_device() -> None:
    from paceline import Accelerator
    from rankside import out
    from ways import torch

    accelerator = Accelerator(device_placement=False)
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(4), batch_size=2))
    assert loader.device is None
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    uneven = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(9), batch_size=2))
    with accelerator.join_uneven_inputs([model], even_batches=False):
        out([batch.tolist() for batch in uneven])
    out([batch.tolist() for batch in uneven])


def test_even_batches_can_be_chosen_for_a_while(way: str) -> None:
    first, second = run_ways(way, 2, _without_a_placed_device)
    assert first.outs == [[[0, 1], [4, 5], [8]], [[0, 1], [4, 5], [8, 0]]]
    assert second.outs == [[[2, 3], [6, 7]], [[2, 3], [6, 7], [1, 2]]]
