# SPDX-License-Identifier: Apache-2.0
"""``skip_first_batches``: the rest of an epoch, with everything that the whole loader has."""

from __future__ import annotations

import pytest

from ways import run_ways


def _skipped() -> None:
    from paceline import Accelerator, DataLoaderConfiguration, skip_first_batches
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(range(10))

    class Reads(data.Dataset):
        read = []

        def __len__(self):
            return 10

        def __getitem__(self, i):
            self.read.append(i)
            return torch.tensor(i)

    def follow(accelerator, loader):
        return [accelerator.gather_for_metrics(batch).tolist() for batch in loader]

    kinds = {
        "sequential": lambda: data.DataLoader(torch.arange(10), batch_size=2),
        "shuffled": lambda: data.DataLoader(torch.arange(10), batch_size=2, shuffle=True),
        "drop_last": lambda: data.DataLoader(torch.arange(10), batch_size=3, drop_last=True),
        "stream": lambda: data.DataLoader(Stream(), batch_size=2),
    }
    configs = [{}, {"dispatch_batches": False}, {"dispatch_batches": True}, {"even_batches": False}]
    for name, make in kinds.items():
        for config in configs:
            if config.get("even_batches") is False and 10 % (2 * WORLD):
                continue  # ranks of different lengths cannot gather together
            accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
            torch.manual_seed(2)
            one = accelerator.prepare(make())
            whole = [follow(accelerator, one) for _ in range(3)]
            for k in sorted({0, 1, len(whole[0]) - 1, len(whole[0])}):
                torch.manual_seed(2)
                loader = accelerator.prepare(make())
                first = follow(accelerator, loader)
                skipped = accelerator.skip_first_batches(loader, k)
                assert isinstance(skipped, data.DataLoader)
                if name != "stream":
                    assert len(skipped) == len(loader) - k
                assert (skipped.device, skipped.batch_size) == (loader.device, loader.batch_size)
                assert skipped.total_batch_size == loader.total_batch_size
                assert accelerator.prepare(skipped) is skipped
                seen = []
                for batch in skipped:
                    assert accelerator.gradient_state.active_dataloader is loader
                    seen.append(accelerator.gather_for_metrics(batch).tolist())
                    end = accelerator.gradient_state.end_of_dataloader
                    assert end == (len(seen) == len(whole[1]) - k), (name, config, k)
                assert [first, seen] == [whole[0], whole[1][k:]], (name, config, k)
                # The next epoch is the next one: the view moved the loader on.
                assert follow(accelerator, loader) == whole[2], (name, config, k)
    accelerator = Accelerator()
    loader = accelerator.prepare(data.DataLoader(Reads(), batch_size=1))
    for _ in skip_first_batches(loader, len(loader) - 1):
        pass
    assert len(Reads.read) == 1, "what is skipped is not read"
    # A view of a view, and one that is used again.
    view = skip_first_batches(skip_first_batches(loader, 1), 1)
    assert len(view) == len(loader) - 2
    assert [len(list(view)), len(list(view))] == [len(loader) - 2] * 2
    # Loaders that are not prepared, before and after.
    for make in kinds.values():
        torch.manual_seed(5)
        plain = [batch.tolist() for batch in make()]
        torch.manual_seed(5)
        rest = skip_first_batches(make(), 2)
        assert isinstance(rest, data.DataLoader)
        assert [batch.tolist() for batch in rest] == plain[2:]
    torch.manual_seed(6)
    later = accelerator.prepare(skip_first_batches(kinds["sequential"](), 2))
    out([sum(follow(accelerator, later), []), RANK])


@pytest.mark.parametrize("world", [1, 2])
def test_trap_7_a_skip_keeps_everything(way: str, world: int) -> None:
    """Metrics without repeats, device, drop_last, accumulation, epochs; accelerate#4235, #4295."""
    for rank in run_ways(way, world, _skipped, timeout=120):
        assert rank.outs[0][0] == list(range(4, 10))


def _after_loading() -> None:
    import random

    from paceline import Accelerator, DataLoaderConfiguration
    from ways import torch

    data = torch.utils.data
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False))

    class Drawn:
        def __iter__(self):
            return iter(random.sample(range(9), 9))

        def __len__(self):
            return 9

    makes = (
        lambda: data.DataLoader(torch.arange(9), batch_size=2, shuffle=True),
        lambda: data.DataLoader(torch.arange(9), batch_size=2, sampler=Drawn()),
    )
    for make in makes:
        loader = accelerator.prepare(make())
        whole, states = [], []
        for batch in loader:
            whole.append(batch.tolist())
            states.append(loader.state_dict())
        for k, state in enumerate(states, 1):
            # As scripts written for Accelerate do: they skip by hand what the state skips already.
            again = accelerator.prepare(make())
            again.load_state_dict(state)
            rest = [batch.tolist() for batch in accelerator.skip_first_batches(again, k)]
            assert rest == whole[k:], (k, rest)
            assert again.state_dict()["epoch"] == 1
            # As scripts that do nothing do.
            again.load_state_dict(state)
            assert [batch.tolist() for batch in again] == whole[k:]
            assert again.state_dict()["epoch"] == 1
        # Counted in steps of all epochs, the end of one is the start of the next.
        again.load_state_dict(states[-1])
        assert len(list(accelerator.skip_first_batches(again, 0))) == len(again)
        assert again.state_dict()["epoch"] == 2


@pytest.mark.parametrize("world", [1, 3])
def test_skipping_by_hand_after_loading_a_place_is_counted_once(way: str, world: int) -> None:
    run_ways(way, world, _after_loading)


def test_a_negative_number_is_an_error(torch) -> None:
    from paceline import skip_first_batches

    loader = torch.utils.data.DataLoader(torch.arange(3))
    with pytest.raises(ValueError, match="num_batches: got -1, expected 0 or more"):
        skip_first_batches(loader, -1)
