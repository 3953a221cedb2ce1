# SPDX-License-Identifier: Apache-2.0
"""``gather_for_metrics``: every real sample once, on one, two and three processes."""

from __future__ import annotations

import pytest

from ways import run_ways


def _tail() -> None:
    from paceline import Accelerator, DataLoaderConfiguration
    from rankside import RANK, WORLD, out
    from ways import torch

    data = torch.utils.data

    class Stream(data.IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(range(self.n))

    configs = [{}, {"split_batches": True}, {"dispatch_batches": True}, {"shard": "samples"}]
    for n in (1, 7, 10, 12):
        for config in [*configs, {"dispatch_batches": False, "stream": True}, {"stream": True}]:
            config = dict(config)
            items = Stream(n) if config.pop("stream", False) else torch.arange(n)
            size = 2 * WORLD if config.get("split_batches") else 4
            accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
            loader = accelerator.prepare(data.DataLoader(items, batch_size=size))
            kept = {"per sample": [], "flattened": [], "nested": [], "objects": [], "sums": []}
            for batch in loader:
                x = batch.float()
                kept["per sample"] += accelerator.gather_for_metrics(x).tolist()
                pairs = torch.stack([x, x], 1).reshape(-1)  # two tokens a sample
                kept["flattened"] += accelerator.gather_for_metrics(pairs).tolist()
                nested = accelerator.gather_for_metrics({"a": (x, [x * 2]), "b": x.reshape(-1, 1)})
                assert (nested["a"][1][0] == nested["a"][0] * 2).all()
                assert tuple(nested["b"].shape) == (len(nested["a"][0]), 1)
                kept["nested"] += nested["a"][0].tolist()
                texts = [str(int(i)) for i in x.tolist()]
                kept["objects"] += accelerator.gather_for_metrics(texts)
                valid = len(batch) if loader.valid is None else loader.valid
                both = torch.tensor([x[:valid].sum().item() if valid else 0.0, float(valid)])
                if valid:
                    assert loader.valid is None or loader.valid < len(batch)
                kept["sums"].append(accelerator.reduce(both).tolist())
            wanted = [float(i) for i in range(n)]
            assert sorted(kept["per sample"]) == wanted, (n, config, kept["per sample"])
            assert sorted(kept["flattened"]) == sorted([*wanted, *wanted]), (n, config)
            assert sorted(kept["nested"]) == wanted
            assert sorted(map(int, kept["objects"])) == list(range(n))
            assert [sum(s) for s in zip(*kept["sums"], strict=True)] == [sum(wanted), float(n)]
    dropping = accelerator.prepare(data.DataLoader(torch.arange(10), batch_size=2, drop_last=True))
    kept = sum((accelerator.gather_for_metrics(batch).tolist() for batch in dropping), [])
    assert kept == list(range(10 - 10 % (2 * WORLD)))
    out(RANK)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_row_10_every_real_sample_once(way: str, world: int) -> None:
    run_ways(way, world, _tail, timeout=120)


def _scalars() -> None:
    from paceline import Accelerator
    from rankside import out
    from ways import torch

    accelerator = Accelerator()
    for n, size in ((10, 4), (5, 4), (7, 2)):
        loader = torch.utils.data.DataLoader(torch.arange(float(n)), batch_size=size)
        found = []
        for batch in accelerator.prepare(loader):
            found += accelerator.gather_for_metrics(batch.mean()).reshape(-1).tolist()
        out(found)


def test_trap_15_scalars_of_batches_that_hold_no_real_sample_are_dropped(way: str) -> None:
    first, second = run_ways(way, 2, _scalars)
    # n=10: the last round is [8, 9, 0, 1] and [2, 3, 4, 5]; n=5: one of [4, 0, 1, 2] and [3, ...]
    assert first.outs[0] == second.outs[0] == [1.5, 5.5, 4.5]
    assert first.outs[1] == second.outs[1] == [1.5, 1.75]
    assert first.outs[2] == second.outs[2] == [0.5, 2.5, 4.5, 3.0]


def _objects_and_ragged() -> None:
    import pytest

    from paceline import Accelerator
    from paceline.errors import CollectiveMismatchError
    from paceline.utils import gather_object
    from rankside import RANK, WORLD, out
    from ways import torch

    accelerator = Accelerator()
    out(gather_object("ab"))
    out(gather_object({"k": RANK}))
    out(gather_object([RANK, "x"]))
    # No loader is active: everything counts.
    x = torch.arange(float(RANK + 1))
    out(accelerator.gather_for_metrics(x).tolist())
    out(accelerator.gather_for_metrics(torch.tensor(float(RANK))).reshape(-1).tolist())
    out(accelerator.gather_for_metrics([f"r{RANK}"]))
    rows = accelerator.gather_for_metrics(torch.ones(2, RANK + 1), use_gather_object=True)
    out([row.tolist() for row in rows])
    if WORLD > 1:
        with pytest.raises(ValueError, match=r"rank 0: \[2, 1\] float32, rank 1: \[2, 2\]"):
            accelerator.gather_for_metrics(torch.ones(2, RANK + 1))
        with pytest.raises(ValueError, match=r"different numbers of tensors: got \[1, 2"):
            accelerator.gather_for_metrics([torch.ones(1)] * (RANK + 1))
        with pytest.raises(ValueError, match="cannot be joined"):
            accelerator.gather_for_metrics(torch.ones(()) if RANK else torch.ones(2))

    # Two loaders, one inside the other: the inner one counts, then the outer one again.
    data = torch.utils.data
    outer = accelerator.prepare(data.DataLoader(torch.arange(3), batch_size=1))
    inner = accelerator.prepare(data.DataLoader(torch.arange(5), batch_size=4))
    seen = []
    for batch in outer:
        kept = []
        for value in inner:
            kept += accelerator.gather_for_metrics(value).tolist()
        assert kept == [0, 1, 2, 3, 4]
        seen += accelerator.gather_for_metrics(batch).tolist()
    assert seen == [0, 1, 2]

    # Per-sample results in structures that are no tensors.
    def texts(samples):
        return [str(sample) for sample in samples]

    loader = accelerator.prepare(data.DataLoader(range(5), batch_size=2, collate_fn=texts))
    kept, pairs, whole = [], [], []
    for batch in loader:
        kept += accelerator.gather_for_metrics(batch)
        found = accelerator.gather_for_metrics({"names": batch})
        pairs += [name for one in found for name in one["names"]]
        whole += accelerator.gather_for_metrics("-".join(batch))
    assert kept == pairs == ["0", "1", "2", "3", "4"]
    out(whole)

    # A batch whose results differ in length between the ranks: what is found, say.
    loader = accelerator.prepare(data.DataLoader(torch.arange(4 * WORLD), batch_size=4))
    for batch in loader:
        found = accelerator.gather_for_metrics(batch[batch % 4 < RANK + 1])
        out(found.tolist())
    if WORLD > 1:
        with pytest.raises(CollectiveMismatchError, match=r"(?s)\[2\].*\[1\]|\[1\].*\[2\]|shape"):
            accelerator.gather(torch.ones(RANK + 1))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_trap_18_objects_are_not_taken_apart_and_ragged_shapes_are_gathered(
    way: str, world: int
) -> None:
    for rank in run_ways(way, world, _objects_and_ragged):
        strings, dicts, lists, ragged, scalars, objects, rows, whole, found = rank.outs
        assert strings == ["ab"] * world
        assert dicts == [{"k": r} for r in range(world)]
        assert lists == [item for r in range(world) for item in (r, "x")]
        assert ragged == [float(i) for r in range(world) for i in range(r + 1)]
        assert scalars == [float(r) for r in range(world)]
        assert objects == [f"r{r}" for r in range(world)]
        assert rows == [[1.0] * (r + 1) for r in range(world) for _ in range(2)]
        if world == 2:
            assert whole == ["0-1", "2-3", "4-0"], "a batch without a real sample is left out"
        assert found == [4 * r + i for r in range(world) for i in range(r + 1)]
