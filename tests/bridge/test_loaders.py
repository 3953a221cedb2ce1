# SPDX-License-Identifier: Apache-2.0
"""Loaders of PyTorch through ``prepare``: every sampler, streams, nested batches, workers."""

from __future__ import annotations

import pytest

from harness import run_ranks

pytest.importorskip("torch")


def every_sampler() -> None:
    import collections

    import torch
    from torch.utils import data

    from paceline import Accelerator
    from paceline.utils import DataLoaderConfiguration, gather_object
    from rankside import WORLD

    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))
    n = 23

    class Numbers(data.Dataset):
        def __len__(self):
            return n

        def __getitem__(self, i):
            assert type(i) is int, type(i)
            return i

    class Odd(data.Sampler):
        def __iter__(self):
            return iter(range(1, n, 2))

        def __len__(self):
            return n // 2

    class Ragged(data.Sampler):  # batches of 1, 2, 3, ...
        def __iter__(self):
            at = 0
            for size in range(1, 7):
                yield list(range(at, min(at + size, n)))
                at += size

        def __len__(self):
            return 6

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(range(n))

    def seen(loader):
        prepared = accelerator.prepare(loader)
        mine = []
        for batch in prepared:
            mine += [batch] if isinstance(batch, int) else batch.tolist()
        return mine, sum(gather_object([mine]), [])

    everything = list(range(n))
    generator = torch.Generator().manual_seed(5)
    loaders = {
        "sequential": (data.DataLoader(Numbers(), 4), everything),
        "shuffled": (data.DataLoader(Numbers(), 4, shuffle=True), everything),
        "generator": (data.DataLoader(Numbers(), 4, shuffle=True, generator=generator), everything),
        "dropped": (data.DataLoader(Numbers(), 4, drop_last=True), None),
        "odd": (data.DataLoader(Numbers(), 2, sampler=Odd()), list(range(1, n, 2))),
        "subset": (
            data.DataLoader(Numbers(), 2, sampler=data.SubsetRandomSampler(range(9))),
            list(range(9)),
        ),
        "ragged": (data.DataLoader(Numbers(), batch_sampler=Ragged()), list(range(21))),
        "single": (data.DataLoader(Numbers(), batch_size=None), everything),
        "stream": (data.DataLoader(Stream(), 4), everything),
        "workers": (data.DataLoader(Numbers(), 4, shuffle=True, num_workers=1), everything),
    }
    for name, (loader, expected) in loaders.items():
        mine, everyone = seen(loader)
        if expected is None:
            assert len(set(everyone)) == len(everyone), f"{name}: {everyone}"
        else:
            assert sorted(everyone) == expected, f"{name}: {sorted(everyone)}"
        assert len(mine) < len(everyone) or WORLD == 1, name

    # Another order in the next epoch, the same on every rank's account.
    prepared = accelerator.prepare(data.DataLoader(Numbers(), 4, shuffle=True))
    epochs = [sum((batch.tolist() for batch in prepared), []) for _ in range(2)]
    assert epochs[0] != epochs[1]

    # Attributes and class of the script's loader.
    class Own(data.DataLoader):
        def __init__(self, path, **options):  # another constructor
            super().__init__(Numbers(), **options)
            self.path = path

    own = Own("here", batch_size=4, num_workers=0)
    prepared = accelerator.prepare(own)
    assert isinstance(prepared, Own)
    assert prepared.path == "here"
    assert prepared.batch_size == 4
    assert own.batch_size == 4

    # Dictionaries, named tuples, nested batches, texts.
    Pair = collections.namedtuple("Pair", "x y")

    class Nested(data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            pair = Pair(torch.tensor(i), torch.full((2,), float(i)))
            return {"pair": pair, "text": f"item {i}", "list": [i, (i, i)]}

    rows = []
    for batch in accelerator.prepare(data.DataLoader(Nested(), 2)):
        assert type(batch) is dict
        pair = batch["pair"]
        assert (type(pair).__name__, pair.y.shape[1:]) == ("Pair", (2,))
        assert batch["text"] == [f"item {i}" for i in pair.x.tolist()]
        rows += accelerator.gather_for_metrics(batch["list"][1][0]).tolist()
    assert sorted(rows) == list(range(8)), rows


@pytest.mark.parametrize("world", [1, 2])
def test_every_sampler_is_shared_out(world: int) -> None:
    run_ranks(world, every_sampler, timeout=100)


def exact_metrics() -> None:
    import torch
    from torch.utils import data

    from paceline import Accelerator

    accelerator = Accelerator()
    loader = accelerator.prepare(data.DataLoader(data.TensorDataset(torch.arange(11)), 2))
    seen = []
    for (batch,) in loader:
        seen += accelerator.gather_for_metrics(batch).tolist()
    assert seen == list(range(11)), seen


def test_gather_for_metrics_drops_what_was_repeated() -> None:
    run_ranks(2, exact_metrics)


def test_a_shuffled_epoch_is_that_of_accelerates_seedable_sampler() -> None:
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    from paceline.engines.torch import ENGINE

    theirs = SeedableRandomSampler(range(50), data_seed=42)
    for epoch in range(3):
        theirs.set_epoch(epoch)
        assert ENGINE.permutation(50, 42 + epoch).tolist() == list(theirs)
    assert torch.initial_seed() is not None


def test_a_shuffled_loader_reads_as_accelerates_does() -> None:
    import torch
    from accelerate.utils import set_seed
    from torch.utils import data

    import paceline

    def loader() -> data.DataLoader:
        return data.DataLoader(data.TensorDataset(torch.arange(10)), 3, shuffle=True)

    set_seed(3)
    expected = list(torch.randperm(10, generator=torch.Generator().manual_seed(3)))
    paceline.utils.set_seed(3)
    prepared = paceline.Accelerator().prepare(loader())
    assert [int(i) for (batch,) in prepared for i in batch] == [int(i) for i in expected]


def sample_by_sample(samples):
    """As torch's own, but by a function of one's own: nothing is gathered at once."""
    from torch.utils import data

    return data.default_collate(samples)


@pytest.mark.parametrize("shuffle", [False, True])
def test_plain_tensors_are_gathered_as_torch_collates_them(shuffle: bool) -> None:
    import torch
    from torch.utils import data

    from paceline import Accelerator
    from paceline.engines.torch import rows
    from paceline.utils import set_seed

    x, y = torch.randn(23, 3, 2), torch.arange(23)
    pairs = data.TensorDataset(x, y)
    gathered = [pairs, x.bfloat16(), data.Subset(pairs, [5, -1, 7, 5]),
                data.Subset(data.Subset(pairs, range(20)), [1, 2, 3])]  # fmt: skip
    others = [data.TensorDataset(x.to(torch.int16)), data.TensorDataset(x.clone().requires_grad_()),
              data.TensorDataset(x.transpose(0, 1)), [1, 2, 3]]  # fmt: skip
    accelerator = Accelerator()
    for dataset in [*gathered, *others]:
        found = []
        for collate in (None, sample_by_sample):
            set_seed(4)
            loader = data.DataLoader(dataset, 4, shuffle, collate_fn=collate)
            prepared = accelerator.prepare(loader)
            batches = [batch for _ in range(2) for batch in prepared]
            found.append((batches, torch.get_rng_state().tolist()))
            known = rows._rows_of_loader(prepared.base) is not None
            assert known == (collate is None and any(dataset is one for one in gathered))
        assert same(*found), dataset


def same(one, other) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_gathered_batch_is_a_copy_that_can_be_written() -> None:
    import torch
    from torch.utils import data

    from paceline import Accelerator

    x = torch.ones(8, 3)
    batches = iter(Accelerator().prepare(data.DataLoader(data.TensorDataset(x), 4)))
    (first,) = next(batches)
    first.zero_()
    assert x.sum() == 24
    x.mul_(2)  # what the script changes is in the next batch
    (second,) = next(batches)
    assert second.sum() == 24
    assert second.requires_grad_().mul(2).sum().backward() is None


def test_a_loader_of_a_class_of_its_own_iterates_in_its_own_way() -> None:
    import torch
    from torch.utils import data

    from paceline import Accelerator

    class Twice(data.DataLoader):
        def __iter__(self):
            return (2 * batch for batch in super().__iter__())

    loader = Accelerator().prepare(Twice(torch.arange(4), batch_size=2))
    assert [batch.tolist() for batch in loader] == [[0, 2], [4, 6]]
