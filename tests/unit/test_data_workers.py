# SPDX-License-Identifier: Apache-2.0
"""DataLoader with worker processes: results, seeds, memory, and that nothing is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import paceline
from paceline import _C
from paceline.utils.data import (
    ArrayDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    get_worker_info,
)

Pair = namedtuple("Pair", "a b")


class Noisy(Dataset):
    """Draws from everything that a data set may draw from."""

    def __init__(self, n: int = 20) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, object]:
        return {
            "i": i,
            "x": paceline.full((300,), float(i)),
            "python": random.random(),
            "numpy": np.random.rand(2),  # noqa: NPY002  # the global state is what is tested
            "paceline": paceline.rand(2),
            "text": f"sample {i}",
        }


def plain(batch: dict[str, object]) -> dict[str, object]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in batch.items()}


def epoch(loader: DataLoader) -> list[dict[str, object]]:
    return [plain(batch) for batch in loader]


def collate_pairs(samples):
    return {"x": paceline.stack([s["x"] for s in samples]), "n": len(samples)}


def children() -> list[int]:
    return [p.pid for p in multiprocessing.active_children()]


@pytest.fixture(autouse=True)
def nothing_left(no_leaks):
    """No process, descriptor or mapping of a loader outlives it."""

    def state() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("paceline-batches")
        return len(os.listdir("/proc/self/fd")), maps

    gc.collect()
    before = state()
    yield
    gc.collect()
    assert children() == []
    assert state() == before


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_results_do_not_depend_on_the_number_of_workers(method: str) -> None:
    counts = (1, 2) if method == "fork" else (2,)
    paceline.manual_seed(3)
    expected = epoch(DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=1))
    for workers in counts:
        paceline.manual_seed(3)
        loader = DataLoader(
            Noisy(), batch_size=3, shuffle=True, num_workers=workers,
            multiprocessing_context=method,
        )  # fmt: skip
        assert epoch(loader) == expected
    if method == "forkserver":  # its server stays; it would count as left behind
        multiprocessing.forkserver._forkserver._stop()
        multiprocessing.resource_tracker._resource_tracker._stop()
    elif method == "spawn":
        multiprocessing.resource_tracker._resource_tracker._stop()


def test_the_order_is_that_of_no_workers() -> None:
    for options in ({"shuffle": True}, {"sampler": [5, 3, 1]}, {"drop_last": True}):
        paceline.manual_seed(1)
        here = [b["i"].tolist() for b in DataLoader(Noisy(), batch_size=3, **options)]
        paceline.manual_seed(1)
        there = [
            b["i"].tolist() for b in DataLoader(Noisy(), batch_size=3, num_workers=2, **options)
        ]
        assert here == there


def test_resuming_at_a_batch_draws_what_it_would_have() -> None:
    batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    whole = DataLoader(Noisy(), batch_sampler=batches, num_workers=2)
    whole._number_from(0, 77)
    expected = epoch(whole)
    for first, workers in ((2, 2), (3, 1)):
        rest = DataLoader(Noisy(), batch_sampler=batches[first:], num_workers=workers)
        rest._number_from(first, 77)
        assert epoch(rest) == expected[first:]
    assert epoch(whole) != expected  # it held for one iteration


def test_streams_of_random_numbers_differ() -> None:
    batches = epoch(DataLoader(Noisy(8), batch_size=2, num_workers=2))
    for name in ("python", "numpy", "paceline"):
        drawn = np.array([b[name] for b in batches]).ravel()
        assert len(np.unique(drawn)) == drawn.size
    # random and NumPy share an algorithm: with one seed they would give the same numbers.
    assert abs(batches[0]["python"][0] - batches[0]["numpy"][0][0]) > 1e-9


def test_everything_of_the_tutorial() -> None:
    with (
        pytest.warns(UserWarning, match="4 worker processes")
        if len(os.sched_getaffinity(0)) < 4
        else no_warning()
    ):
        loader = DataLoader(
            Noisy(70), batch_size=32, shuffle=True, num_workers=4, pin_memory=True, drop_last=True,
            prefetch_factor=2, persistent_workers=True, collate_fn=collate_pairs,
        )  # fmt: skip
    for _ in range(2):
        batches = list(loader)
        assert [b["n"] for b in batches] == [32, 32]
        assert all(b["x"].shape == (32, 300) for b in batches)
    del batches


def no_warning():
    import contextlib

    return contextlib.nullcontext()


class Shapes(Dataset):
    """Whatever a batch may be made of."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> object:
        x = paceline.arange(12.0).reshape(3, 4) + i
        return [
            Pair(x.t(), (x[1], [x[:, 2]])), paceline.tensor(i), paceline.zeros(0, 3),
            x.to(paceline.bfloat16), x > 3, np.arange(5) * i, np.float32(i), "text" * 3000, None,
            {"set": {1, 2}, i: b"bytes" * 3000}, np.ones((2, 0)),
            paceline.ones(2, requires_grad=True),
        ]  # fmt: skip


def first_of(samples):
    return samples[0]


def test_any_nesting_arrives_as_it_was() -> None:
    loader = DataLoader(Shapes(), num_workers=1, collate_fn=first_of)
    for i, (own, there) in enumerate(zip(DataLoader(Shapes(), collate_fn=first_of), loader,
                                         strict=True)):  # fmt: skip
        assert repr(own) == repr(there)
        assert there[3].dtype == paceline.bfloat16
        assert there[11].requires_grad
        assert type(there[0]) is Pair
        there[5][:] = 7  # arrays and tensors can be written
        there[0].a.zero_()
        assert there[9][i] == b"bytes" * 3000
    del own, there


def test_the_ring_of_segments_stays_small() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("paceline-batches")

    class Wide(Dataset):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, i: int) -> paceline.Tensor:
            return paceline.full((2000 + 400 * i,), float(i))  # each batch larger than the last

    loader = DataLoader(Wide(), batch_size=None, num_workers=2)
    most = 0
    for i, x in enumerate(loader):
        assert x.shape == (2000 + 400 * i,)
        assert bool((x == i).all())
        most = max(most, mappings())
    assert 1 <= most <= 12
    kept = []
    for x in loader:  # who keeps all batches gets copies: none is overwritten
        kept.append(x)
        most = max(most, mappings())
    assert most <= 12
    assert all(bool((x == i).all()) for i, x in enumerate(kept))
    del x, kept


def test_epochs_that_are_left_early_give_their_segments_back() -> None:
    loader = DataLoader(
        Noisy(40), batch_size=2, num_workers=1, prefetch_factor=4, persistent_workers=True
    )
    for _ in range(15):
        iterator = iter(loader)
        next(iterator)
        time.sleep(0.02)  # batches come that nobody will take
        next(iterator)
    del iterator
    assert Path("/proc/self/maps").read_text().count("paceline-batches") <= 8
    del loader


def test_batches_outlive_their_loader() -> None:
    batches = list(DataLoader(Noisy(4), batch_size=2, num_workers=1))
    gc.collect()
    assert [b["x"][:, 0].tolist() for b in batches] == [[0, 1], [2, 3]]


def test_leaving_early_and_two_at_once() -> None:
    loader = DataLoader(Noisy(), batch_size=2, num_workers=2)
    began = time.monotonic()
    for _batch in loader:
        break
    del _batch
    assert children() == []  # the iterator is gone, and its workers with it
    first, second = iter(loader), iter(loader)
    assert next(first)["i"].tolist() == next(second)["i"].tolist() == [0, 1]
    assert next(first)["i"].tolist() == [2, 3]

    def fails() -> None:
        for _batch in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    del first, second
    gc.collect()
    assert children() == []
    assert time.monotonic() - began < 20


def test_persistent_workers_stay_and_go_with_the_loader() -> None:
    loader = DataLoader(Noisy(8), batch_size=2, num_workers=2, persistent_workers=True)
    paceline.manual_seed(0)
    first = epoch(loader)
    pids = children()
    assert len(pids) == 2
    for number, _ in enumerate(loader):
        if number == 1:
            break  # what was asked for is forgotten
    assert [b["i"] for b in epoch(loader)] == [b["i"] for b in first]
    assert children() == pids
    paceline.manual_seed(0)
    assert epoch(loader) == first
    del loader
    gc.collect()
    assert children() == []


class Numbers(IterableDataset):
    def __init__(self, n: int, shared: bool = True) -> None:
        self.n, self.shared = n, shared

    def __iter__(self):
        info = get_worker_info()
        if info is None or not self.shared:
            return iter(range(self.n))
        return iter(range(info.id, self.n, info.num_workers))

    def __len__(self) -> int:
        return self.n


def test_streams() -> None:
    loader = DataLoader(Numbers(11), batch_size=2, num_workers=2)
    got = [b.tolist() for b in loader]
    assert got == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9]]
    assert [b.tolist() for b in loader] == got
    dropped = DataLoader(Numbers(11), batch_size=2, num_workers=2, drop_last=True)
    assert [b.tolist() for b in dropped] == got[:-1]
    single = DataLoader(Numbers(3), batch_size=None, num_workers=2)
    assert list(single) == [0, 1, 2]
    again = DataLoader(Numbers(3), num_workers=1, persistent_workers=True)
    assert [[b.item() for b in again] for _ in range(2)] == [[0, 1, 2]] * 2
    double = DataLoader(Numbers(3, shared=False), num_workers=2)
    assert len(double) == 3
    with pytest.warns(UserWarning, match="was reported to be 3"):
        assert len(list(double)) == 6


def test_ready_first_comes_first() -> None:
    class Uneven(Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> int:
            time.sleep(0.4 if i == 0 else 0)
            return i

    loader = DataLoader(Uneven(), num_workers=2, in_order=False)
    got = [b.item() for b in loader]
    assert sorted(got) == list(range(6))
    assert got[0] != 0
    assert [b.item() for b in DataLoader(Uneven(), num_workers=2)] == list(range(6))


class About(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int):
        info = get_worker_info()
        return info.id, info.num_workers, info.seed, info.dataset is self, self.told, os.getpid()


def tell(worker: int) -> None:
    get_worker_info().dataset.told = worker + 100


def test_worker_info_and_init_fn() -> None:
    assert get_worker_info() is None
    loader = DataLoader(
        About(), num_workers=2, worker_init_fn=tell, collate_fn=first_of, persistent_workers=True
    )
    rows = list(loader)
    assert [r[0] for r in rows] == [0, 1, 0, 1]
    assert all(r[1] == 2 and r[3] and r[4] == r[0] + 100 for r in rows)
    assert rows[1][2] == rows[0][2] + 1  # base seed + worker
    loader._number_from(0, 500)
    assert [r[2] for r in loader][:2] == [500, 501]
    assert get_worker_info() is None


def no_more(worker: int) -> None:
    assert get_worker_info().id == worker


def test_arrays_are_gathered_by_workers_where_they_have_to_be(tmp_path) -> None:
    x, y = paceline.randn(30, 4), paceline.arange(30)
    np.save(tmp_path / "x.npy", x.numpy())
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    for data, options, workers in (
        (TensorDataset(x, y), {"worker_init_fn": no_more}, 2),
        (ArrayDataset(on_disk, y), {}, 2),
        (TensorDataset(x, y), {}, 0),  # in memory: there is nothing for a worker to do
    ):
        for a, b in zip(DataLoader(data, 7), DataLoader(data, 7, num_workers=2, **options),
                        strict=True):  # fmt: skip
            assert len(children()) == workers
            assert all(paceline.equal(x, y) for x, y in zip(a, b, strict=True))
        del a, b


def test_a_worker_runs_one_thread() -> None:
    class Threads(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> int:
            x = paceline.randn(400, 400)
            (x @ x).sum()
            return len(os.listdir("/proc/self/task"))

    x = paceline.randn(400, 400)
    (x @ x).sum()  # the pool of this process is there
    assert [b.item() for b in DataLoader(Threads(), num_workers=2)] == [1, 1]


def test_a_fixed_loader_and_its_warnings() -> None:
    loader = DataLoader(Noisy(), batch_size=2)
    for name in ("batch_size", "sampler", "batch_sampler", "drop_last", "dataset"):
        with pytest.raises(ValueError, match=f"{name} attribute should not be set"):
            setattr(loader, name, None)
    processors = len(os.sched_getaffinity(0))
    with pytest.warns(UserWarning, match=f"suggested max number of worker.*is {processors}"):
        many = DataLoader(Noisy(), num_workers=processors + 1)
    assert many.prefetch_factor == 2
    assert DataLoader(Noisy()).prefetch_factor is None
    nothing_ahead = DataLoader(Noisy(4), num_workers=1, prefetch_factor=0)
    assert len(list(nothing_ahead)) == 4


def test_iterators_are_their_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.utils.data.rows._has_idle_processor", lambda: True)
    data = paceline.zeros(400, 784)
    for loader in (DataLoader(Noisy(), num_workers=1), DataLoader(data, batch_size=100)):
        iterator = iter(loader)
        next(iterator)
        pid = os.fork()
        if pid == 0:
            try:
                next(iterator)
            except RuntimeError as error:
                os._exit(0 if "forked from it" in str(error) else 3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert next(iterator) is not None
        del iterator


def test_an_error_of_the_sampler_comes_in_its_turn() -> None:
    def batches():
        yield [0]
        yield [1]
        raise LookupError("no more")

    class Batches:
        def __iter__(self):
            return batches()

    for workers in (0, 1):
        iterator = iter(DataLoader(Noisy(), batch_sampler=Batches(), num_workers=workers))
        assert [next(iterator)["i"].item() for _ in range(2)] == [0, 1]
        with pytest.raises(LookupError, match="no more"):
            next(iterator)
        del iterator


def test_long_lists_of_indices_block_nobody() -> None:
    big = list(range(100_000))  # 300 kB of pickle: more than a socket takes
    texts = DataLoader(
        ["x" * 50] * 100_000, batch_sampler=[big] * 6, num_workers=1, prefetch_factor=6
    )
    assert [len(b) for b in texts] == [100_000] * 6


def test_live_objects_are_counted() -> None:
    memory = os.memfd_create("test")
    os.ftruncate(memory, 4096)
    before = _C.live_objects()["other"]
    shared = _C.map_shared(memory, 4096)
    assert _C.live_objects()["other"] == before + 1
    x = shared.tensor(64, 6, (3, 2))
    x.fill_(2)
    assert shared.users == 1
    shared.write(0, b"abc")
    assert os.pread(memory, 3, 0) == b"abc"
    with pytest.raises(ValueError, match="multiple of 64"):
        shared.tensor(8, 6, (1,))
    with pytest.raises(ValueError, match="does not fit"):
        shared.tensor(0, 6, (2**40, 2**40))
    with pytest.raises(ValueError, match="segment of 4096"):
        shared.tensor(64, 6, (1020,))
    with pytest.raises(ValueError, match="segment of 4096"):
        shared.write(4095, b"ab")
    with pytest.raises(ValueError, match="has not the"):
        _C.map_shared(memory, 8192)
    del shared  # the tensor keeps the mapping
    assert x.sum().item() == 12
    os.close(memory)
