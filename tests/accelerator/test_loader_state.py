# SPDX-License-Identifier: Apache-2.0
"""A loader's place: saved after any batch, the rest comes as it would have, or to other ranks."""

from __future__ import annotations

import pytest

from ways import run_ways


def _every_place() -> None:
    import json
    import random

    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import ARGS, RANK, out
    from ways import torch

    data = torch.utils.data
    N = 11

    class Noisy(data.Dataset):  # an augmentation draws random numbers
        def __len__(self):
            return N

        def __getitem__(self, i):
            return torch.tensor([float(i), random.random(), torch.rand(()).item()])

    class Stream(data.IterableDataset):
        def __init__(self, generator=None):
            self.generator = generator

        def __iter__(self):
            order = torch.randperm(N, generator=self.generator).tolist()
            for i in order:
                yield torch.tensor([float(i), random.random(), torch.rand(()).item()])

    class Buckets:
        def __iter__(self):
            order = random.sample(range(N), N)
            return iter([order[:3], order[3:4], order[4:9], order[9:]])

        def __len__(self):
            return 4

    class Endless:
        def __iter__(self):
            for _ in range(9):
                yield random.randrange(N)

    def generator():
        return torch.Generator().manual_seed(9)

    def make(kind, workers):
        options = {"batch_size": 2, "num_workers": workers}
        if kind == "shuffled":
            return data.DataLoader(Noisy(), shuffle=True, **options)
        if kind == "generator":
            return data.DataLoader(Noisy(), shuffle=True, generator=generator(), **options)
        if kind == "weighted":
            weighted = data.WeightedRandomSampler([1.0] * N, N, generator=generator())
            return data.DataLoader(Noisy(), sampler=weighted, **options)
        if kind == "buckets":
            return data.DataLoader(Noisy(), batch_sampler=Buckets(), num_workers=workers)
        if kind == "endless":
            return data.DataLoader(Noisy(), sampler=Endless(), **options)
        if kind == "distributed":
            sampler = data.DistributedSampler(Noisy(), ARGS["world"], RANK)
            return data.DataLoader(Noisy(), sampler=sampler, **options)
        own = generator() if kind == "stream with a generator" else None
        return data.DataLoader(Stream(own), **options)

    def begin(kind, config, workers):
        random.seed(3)
        torch.manual_seed(4)
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
        return accelerator.prepare(make(kind, workers))

    def random_state():
        return random.getstate(), torch.get_rng_state()

    def set_random_state(states):
        random.setstate(states[0])
        torch.set_rng_state(states[1])

    def follow(loader, epochs, saved):
        read = []
        for _ in range(epochs):
            read.append([])
            for batch in loader:
                torch.rand(3)  # the training draws too
                read[-1].append(batch.tolist())
                if saved is not None:
                    saved.append((len(read), len(read[-1]), loader.state_dict(), random_state()))
        return read

    for kind, config in ARGS["cases"]:
        workers = ARGS["workers"]
        saved = []
        whole = follow(begin(kind, config, workers), 2, saved)
        assert whole[0] != whole[1]
        assert len(saved) == len(whole[0]) + len(whole[1])
        for epoch, given, state, states in saved:
            assert state["epoch"] == epoch - 1
            assert state["batches"] == given
            loader = begin(kind, config, workers)
            loader.load_state_dict(state)
            if not any(hasattr(value, "tolist") for value in (state["order"] or {}).values()):
                json.dumps(state)
            assert loader.state_dict() == state, "before anything is read it is where it was"
            set_random_state(states)
            rest = follow(loader, 3 - epoch, None)
            assert rest == [whole[epoch - 1][given:], *whole[epoch:]], (kind, config, epoch, given)
    out("done")


KINDS = ("shuffled", "generator", "weighted", "buckets", "distributed")
STREAMS = ("stream", "stream with a generator")


@pytest.mark.parametrize("world", [1, 2])
def test_row_9_after_any_batch_the_rest_of_the_run_is_the_same(way: str, world: int) -> None:
    cases = [(kind, {}) for kind in (*KINDS, *STREAMS)]
    cases += [("shuffled", {"use_seedable_sampler": False}), ("shuffled", {"even_batches": False})]
    if world == 1:
        cases.append(("endless", {}))
    else:
        cases += [("shuffled", {"split_batches": True}), ("shuffled", {"shard": "samples"})]
        cases += [("stream", {"dispatch_batches": False}), ("shuffled", {"dispatch_batches": True})]
    args = {"cases": cases, "workers": 0, "world": world}
    run_ways(way, world, _every_place, args=args, timeout=120)


def test_row_9_with_workers_too(way: str) -> None:
    cases = [("shuffled", {}), ("stream", {}), ("buckets", {})]
    args = {"cases": cases, "workers": 2, "world": 1}
    run_ways(way, 1, _every_place, args=args, timeout=120)


def _first_part() -> None:
    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import ARGS, out
    from ways import torch

    data = torch.utils.data

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(range(23))

    class Buckets:
        def __iter__(self):
            start = 0
            for size in (3, 1, 5, 2, 4, 4, 1, 3):
                yield list(range(start, start + size))
                start += size

        def __len__(self):
            return 8

    found = []
    for kind, size, config in ARGS["cases"]:
        torch.manual_seed(4)
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
        if kind == "stream":
            loader = data.DataLoader(Stream(), batch_size=size)
        elif kind == "buckets":
            loader = data.DataLoader(torch.arange(23), batch_sampler=Buckets())
        else:
            loader = data.DataLoader(torch.arange(23), batch_size=size, shuffle=True)
        loader = accelerator.prepare(loader)
        state, given = ARGS["states"][len(found)], ARGS["given"]
        if state is not None:
            loader.load_state_dict(state)
        kept, ended = [], True
        for at, batch in enumerate(loader, 1):
            kept += accelerator.gather_for_metrics(batch).tolist()
            if at == given:
                ended = False
                break
        state = loader.state_dict()
        order = state["order"] or {}
        for name, value in order.items():
            order[name] = value.tolist() if hasattr(value, "tolist") else value
        assert ended or state["batches"] <= given
        found.append((kept, state))
    out(found)


@pytest.mark.parametrize("path", [(2, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_row_9_other_ranks_see_each_remaining_sample_once(way: str, path: tuple[int, ...]) -> None:
    cases = [
        ("shuffled", 2, {}),
        ("shuffled", 2, {"shard": "samples"}),
        ("shuffled", 2, {"dispatch_batches": True}),
        ("stream", 2, {}),
        ("stream", 2, {"dispatch_batches": False}),
    ]
    states: list[object] = [None] * len(cases)
    seen: list[list[int]] = [[] for _ in cases]
    for number, world in enumerate(path):
        args = {"cases": cases, "states": states, "given": 2 if number < 2 else 99}
        ranks = run_ways(way, world, _first_part, args=args)
        states = [state for _, state in ranks[0].outs[0]]
        for have, (kept, state) in zip(seen, ranks[0].outs[0], strict=True):
            have += kept
            assert number == 2 or state["samples"] == len(have)
    for case, have in zip(cases, seen, strict=True):
        assert sorted(have) == list(range(23)), case


def test_a_state_that_does_not_fit_is_refused(torch) -> None:
    from paceline import Accelerator

    data = torch.utils.data
    accelerator = Accelerator()

    def loader(n: int = 5):
        return accelerator.prepare(data.DataLoader(torch.arange(n), batch_size=2))

    one = loader()
    next(iter(one))
    state = one.state_dict()
    with pytest.raises(ValueError, match=r"version of the loader's state: got 0, expected 1"):
        one.load_state_dict({**state, "version": 0})
    other = loader(7)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="got 7 samples, expected the 5"):
        next(iter(other))


def test_trap_8_the_epoch_is_part_of_the_place(torch) -> None:
    from paceline import Accelerator

    accelerator = Accelerator()

    def loader():
        torch.manual_seed(0)
        items = torch.utils.data.TensorDataset(torch.arange(8))
        return accelerator.prepare(torch.utils.data.DataLoader(items, batch_size=4, shuffle=True))

    def read(one):
        return [batch[0].tolist() for batch in one]

    first = loader()
    epochs = [read(first) for _ in range(3)]
    state = first.state_dict()
    assert (state["epoch"], state["batches"]) == (3, 0)
    following = read(first)
    assert following not in epochs
    later = loader()
    later.load_state_dict(state)
    assert later.iteration == 3
    assert read(later) == following
    # A script that names the epoch itself wins over the place.
    later.load_state_dict(state)
    later.set_epoch(1)
    assert read(later) == epochs[1]
    # And one that leaves an epoch early goes on with the next.
    again = loader()
    next(iter(again))
    again.set_epoch(1)
    assert (again.state_dict()["epoch"], again.state_dict()["batches"]) == (1, 0)


def _refused() -> None:
    import pytest

    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import ARGS, RANK, WORLD, out
    from ways import torch

    data = torch.utils.data
    config = DataLoaderConfiguration(dispatch_batches=False)
    accelerator = Accelerator(dataloader_config=config)

    class Divides(data.IterableDataset):
        num_shards = 4

        def __init__(self, items):
            self.items = items

        def __iter__(self):
            return iter(self.items)

        def shard(self, num_shards, index):
            return Divides(self.items[index::num_shards])

    class Endless:
        def __iter__(self):
            return iter(range(8))

    class Own(data.DistributedSampler):
        pass

    items = torch.arange(8)
    makes = {
        "divided itself": data.DataLoader(Divides(list(range(8))), batch_size=1),
        "shares out itself": data.DataLoader(items, sampler=Own(items, WORLD, RANK)),
    }
    if WORLD == 1:
        makes["has no length"] = data.DataLoader(items, sampler=Endless())
    states = {}
    for text, loader in makes.items():
        loader = accelerator.prepare(loader)
        state = (ARGS["states"] or {}).get(text)
        if state is not None:

            def go_on(loader, state):
                loader.load_state_dict(state)
                next(iter(loader))

            with pytest.raises(ValueError, match=text):
                go_on(loader, state)
        next(iter(loader))
        state = loader.state_dict()
        order = state["order"] or {}
        for name, value in order.items():
            order[name] = value.tolist() if hasattr(value, "tolist") else value
        states[text] = state
    # Another batch size is another way to share out: what cannot be cut anew says so.
    if WORLD == 1:
        larger = accelerator.prepare(data.DataLoader(items, batch_size=2, sampler=Endless()))
        larger.load_state_dict(states["has no length"])
        with pytest.raises(ValueError, match="the sampler has no length"):
            next(iter(larger))
    out(states)


def test_a_place_that_other_ranks_cannot_take_up_is_refused(way: str) -> None:
    (first, _) = run_ways(way, 2, _refused, args={"states": None})
    states = first.outs[0]
    three = run_ways(way, 3, _refused, args={"states": states})
    assert all(rank.returncode == 0 for rank in three)
    run_ways(way, 1, _refused, args={"states": None})
