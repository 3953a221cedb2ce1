# SPDX-License-Identifier: Apache-2.0
"""DataLoader in one process: its arguments, orders and streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paceline
from paceline.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)


class Squares(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"i": i, "x": paceline.tensor([float(i), float(i * i)])}


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
        (ValueError, "prefetch_factor", {"prefetch_factor": -1, "num_workers": 1}),
        (ValueError, "valid start method", {"multiprocessing_context": "x", "num_workers": 1}),
        (ValueError, "num_workers=0", {"multiprocessing_context": "fork"}),
        (TypeError, "valid context", {"multiprocessing_context": 3, "num_workers": 1}),
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


ARGUMENTS = [
    {"batch_size": st.sampled_from([1, 3, None, 0, -1, True, 2.5])},
    {"shuffle": st.sampled_from([None, False, True])},
    {"sampler": st.sampled_from([None, [2, 0]])},
    {"batch_sampler": st.sampled_from([None, [[1], [0, 2]]])},
    {"drop_last": st.booleans()},
    {"num_workers": st.sampled_from([0, 1, -1])},
    {"prefetch_factor": st.sampled_from([None, 2, -1])},
    {"persistent_workers": st.booleans()},
    {"timeout": st.sampled_from([0, 5, -1])},
]
ATTRIBUTES = (
    "batch_size num_workers prefetch_factor timeout drop_last persistent_workers in_order "
    "pin_memory worker_init_fn generator multiprocessing_context pin_memory_device"
).split()


class Counted(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def _outcome(make, dataset, options):
    """What comes of making a loader: the error, or the attributes and the length."""
    try:
        loader = make(dataset, **options)
        length = len(loader) if isinstance(dataset, list) else None
    except Exception as error:
        return type(error).__name__
    return {name: getattr(loader, name) for name in ATTRIBUTES}, length


@settings(max_examples=400)
@given(st.data(), st.booleans())
def test_arguments_are_refused_and_kept_as_pytorch_does(data, stream: bool) -> None:
    torch = pytest.importorskip("torch").utils.data
    chosen = data.draw(st.lists(st.sampled_from(ARGUMENTS), max_size=4))
    options = {name: data.draw(values) for one in chosen for name, values in one.items()}

    class Theirs(torch.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    theirs = _outcome(torch.DataLoader, Theirs() if stream else [5, 6, 7], options)
    own = _outcome(DataLoader, Counted() if stream else [5, 6, 7], options)
    assert own == theirs


def test_many_workers_are_no_news_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A launcher gives each rank some processors; PyTorch's rule is about the machine.
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with pytest.warns(UserWarning, match="is 1, which is smaller"):
        DataLoader([1], num_workers=3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    DataLoader([1], num_workers=4)
    with pytest.warns(UserWarning, match="is 4, which is smaller"):
        DataLoader([1], num_workers=5)


class Spoilt(Dataset):
    """One sample cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        if i == 1:
            raise OSError("spoilt")
        return i


class SpoiltStream(IterableDataset):
    def __iter__(self):
        return map(Spoilt().__getitem__, range(4))


def _all_of(loader) -> list[object]:
    got, iterator = [], iter(loader)
    while True:
        try:
            got.append(next(iterator).tolist())
        except StopIteration:
            return got
        except (OSError, IndexError) as error:
            got.append(type(error).__name__)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_can_go_on_after_an_error(workers: int) -> None:
    assert _all_of(DataLoader(Spoilt(), num_workers=workers)) == [[0], "OSError", [2], [3]]
    torch = pytest.importorskip("torch").utils.data
    assert _all_of(torch.DataLoader(Spoilt(), 2)) == _all_of(DataLoader(Spoilt(), 2))
    if workers == 0:
        assert _all_of(DataLoader(SpoiltStream()))[:2] == [[0], "OSError"]
    wide = paceline.arange(3.0).view(3, 1).repeat(1, 20_000)
    for data in (wide, wide[:, :1].contiguous()):
        assert [
            b if isinstance(b, str) else b[0][0]
            for b in _all_of(DataLoader(data, sampler=[0, 7, 2], num_workers=workers))
        ] == [0, "IndexError", 2]
