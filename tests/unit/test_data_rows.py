# SPDX-License-Identifier: Apache-2.0
"""Data sets that are arrays: a gather in C gives what sample by sample would, before its turn."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline import _C
from paceline.utils.data import (
    ArrayDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    rows,
)
from paceline.utils.data.rows import rows_of

LARGE = 16  # rows of `wide` that are worth a thread


def slowly(samples):
    """As default_collate, but by a function of one's own: sample by sample."""
    return default_collate(samples)


def wide(n: int = 100) -> paceline.Tensor:
    return paceline.arange(n * 2000.0).view(n, 2000)


def same(a, b) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture(params=["ahead", "in turn"])
def idle(request) -> bool:
    """Whether loops leave a processor to the thread that reads ahead; both ways."""
    processors = len(os.sched_getaffinity(0))
    if request.param == "ahead" and processors < 2:
        pytest.skip("one processor")
    before = paceline.get_num_threads()
    paceline.set_num_threads(1 if request.param == "ahead" else processors)
    yield request.param == "ahead"
    paceline.set_num_threads(before)


DTYPES = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_arrays_as_sample_by_sample(dtype: str, ndim: int) -> None:
    array = (np.arange(60) % 5).reshape((10, 3, 2)[: ndim - 1] + (-1,)).astype(dtype)
    tensor = paceline.from_numpy(array.copy())
    for data in (array, tensor, ArrayDataset(array, tensor), TensorDataset(tensor, tensor)):
        assert rows_of(data, default_collate) is not None
        fast = list(DataLoader(data, 4, sampler=[3, 1, 1, 2, 0, 1]))
        slow = list(DataLoader(data, 4, sampler=[3, 1, 1, 2, 0, 1], collate_fn=slowly))
        assert same(fast, slow)


def test_bfloat16_and_empty_rows() -> None:
    for data in (paceline.randn(6, 3).bfloat16(), paceline.zeros(6, 0), paceline.zeros(0, 3)):
        assert same(list(DataLoader(data, 4)), list(DataLoader(data, 4, collate_fn=slowly)))


@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.booleans(), st.data())
def test_every_row_once_in_its_place(n, size, drop_last, twice, data) -> None:
    indices = data.draw(st.lists(st.integers(-n, n - 1), max_size=30))
    base = TensorDataset(wide(n), paceline.arange(n))
    whole = Subset(base, indices)
    order = [i % n for i in indices]
    if twice:
        whole = Subset(whole, list(range(len(indices)))[::-1])
        order = order[::-1]
    batches = list(DataLoader(whole, size, drop_last=drop_last))
    got = [i for _, labels in batches for i in labels.tolist()]
    kept = len(order) // size * size if drop_last else len(order)
    assert got == order[:kept]
    assert all(same(x, base.tensors[0][y]) for x, y in batches)


def test_a_memory_map_is_read_by_rows(tmp_path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(400_000, dtype=np.float32).reshape(100, 4000))
    for mode in ("r", "c", "r+"):
        data = np.load(path, mmap_mode=mode)
        assert type(data) is np.memmap
        assert rows_of(data, default_collate) is not None
        assert rows_of(data, default_collate)._gather.is_stable == (mode == "r")
        batches = list(DataLoader(data, 30))
        assert np.array_equal(np.concatenate([b.numpy() for b in batches]), data)
        batches[0].zero_()  # a batch is a copy
        assert data[1, 1] == 4001
        pairs = DataLoader(ArrayDataset(data, np.arange(100)), 30, shuffle=True)
        for x, i in pairs:
            assert np.array_equal(x.numpy(), data[i.numpy()])


def test_a_file_is_read_ahead_whatever_loops_use(tmp_path, idle) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, wide().numpy())
    data = np.load(path, mmap_mode="r")
    list(DataLoader(data, LARGE))
    before = threads()
    iterator = iter(DataLoader(data, LARGE))
    next(iterator)
    assert threads() == before + 1
    del iterator


def test_a_share_of_the_machine_has_no_idle_processor(monkeypatch) -> None:
    before = paceline.get_num_threads()
    paceline.set_num_threads(1)
    try:
        whole = os.cpu_count()
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(whole)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(whole))
        assert not rows._has_idle_processor()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        assert rows._has_idle_processor() == (whole > 1)
    finally:
        paceline.set_num_threads(before)


def test_what_needs_more_than_a_gather() -> None:
    class Louder(TensorDataset):
        def __getitem__(self, i):
            return tuple(10 * t for t in super().__getitem__(i))

    class Other(Subset):
        def __getitem__(self, i):
            return -self.dataset[self.indices[i]]

        def __getitems__(self, indices):
            return [self[i] for i in indices]

    class Array(np.ndarray):
        pass

    x = paceline.arange(6.0)
    for data in (
        Louder(x), Other(x, [1, 2]), Subset(Louder(x), [1, 2]), x.numpy().view(Array),
        np.array(["a", "b"]), np.arange(6, dtype=np.int16), np.arange(6)[::-1], [1, 2], x.sum(),
        ArrayDataset(np.array(["a"])),
    ):  # fmt: skip
        assert rows_of(data, default_collate) is None
    assert rows_of(x, slowly) is None
    assert next(iter(DataLoader(Louder(x), 3)))[0].tolist() == [0, 10, 20]
    assert next(iter(DataLoader(Other(x, [1, 2]), 2))).tolist() == [-1, -2]


def test_tensors_that_need_an_operator() -> None:
    strided = wide(50).t()[:, ::2]
    assert same(list(DataLoader(strided, 64)), list(DataLoader(strided, 64, collate_fn=slowly)))
    leaf = paceline.randn(4, 2, requires_grad=True)
    (batch,) = DataLoader(leaf, 4)
    batch.sum().backward()
    assert leaf.grad.tolist() == [[1, 1]] * 4
    mixed = ArrayDataset(strided, np.arange(2000))
    assert rows_of(mixed, default_collate) is None
    assert next(iter(DataLoader(mixed, 3)))[1].tolist() == [0, 1, 2]


def test_large_batches_are_read_by_a_thread_that_goes(no_leaks, idle) -> None:
    data = TensorDataset(wide(), paceline.arange(100))
    list(DataLoader(data, LARGE))  # starts the threads of loops, which stay
    before = threads()
    iterator = iter(DataLoader(data, LARGE))
    next(iterator)
    assert threads() == before + idle
    assert [y[0].item() for _, y in iterator] == [16, 32, 48, 64, 80, 96]
    del iterator
    for _batch in DataLoader(data, LARGE):
        break  # left with batches that nobody took
    del _batch
    assert threads() == before
    small = iter(DataLoader(data, 1))
    next(small)
    assert threads() == before
    del small


def test_a_change_of_the_data_is_seen_at_once(idle) -> None:
    data = TensorDataset(wide(), paceline.zeros(100))
    for number, (x, y) in enumerate(DataLoader(data, LARGE)):
        assert y.tolist() == [number] * len(y)
        assert same(x, data.tensors[0][number * LARGE : (number + 1) * LARGE])
        data.tensors[0].add_(1)
        data.tensors[1].add_(1)
    x = wide().numpy()  # arrays do not tell of changes: each batch is read at its turn
    for number, batch in enumerate(DataLoader(x, LARGE)):
        assert np.array_equal(batch.numpy(), x[number * LARGE : (number + 1) * LARGE])
        x += 1
    shared = paceline.from_numpy(x)
    assert not rows_of(shared, default_collate)._gather.is_stable


def test_a_tensor_whose_data_are_replaced_lives_until_the_end_of_the_epoch(idle) -> None:
    x = wide()
    iterator = iter(DataLoader(x, LARGE))
    first = next(iterator)[0, 1].item()
    x.data = paceline.zeros(100, 2000)
    _C.alloc_trim()
    assert first == 1
    assert next(iterator)[0, 1].item() == LARGE * 2000 + 1
    del iterator


def test_an_index_out_of_range_is_told_in_its_turn(idle) -> None:
    x = wide()
    sampler = [*range(LARGE), 100, *range(2 * LARGE - 1)]

    class Order(paceline.utils.data.SequentialSampler):
        order_is_fixed = True

        def __iter__(self):
            return (sampler[at : at + LARGE] for at in range(0, len(sampler), LARGE))

    for width in (2000, 1):
        iterator = iter(DataLoader(x[:, :width].contiguous(), batch_sampler=Order(x)))
        assert next(iterator)[1, 0].item() == 2000
        with pytest.raises(IndexError, match="100"):
            next(iterator)
        del iterator


def test_a_sampler_of_ones_own_is_asked_batch_by_batch(idle) -> None:
    asked = []

    class Batches:
        def __iter__(self):
            for at in range(4):
                asked.append(at)
                yield list(range(at * LARGE, (at + 1) * LARGE))

    for number, _ in enumerate(DataLoader(wide(), batch_sampler=Batches())):
        assert len(asked) == number + 1  # what it draws from is not ahead of the loop


def test_iterators_in_many_threads(idle) -> None:
    data, wrong = wide(), []

    def read() -> None:
        for number, batch in enumerate(DataLoader(data, LARGE)):
            if batch[0, 0].item() != number * LARGE * 2000:
                wrong.append(number)

    row = [threading.Thread(target=read) for _ in range(4)]
    for thread in row:
        thread.start()
    for thread in row:
        thread.join()
    assert wrong == []


def test_row_gather_refuses(no_leaks) -> None:
    x = paceline.ones(3, 2)
    gather = _C.row_gather([(x, (3, 2))])
    assert gather.row_bytes == 8
    with pytest.raises(TypeError, match="expected 1 of int64"):
        gather.gather(paceline.ones(2))
    with pytest.raises(RuntimeError, match="no batch to take"):
        gather.take()
    with pytest.raises(IndexError, match="got 3, expected -3 to 2"):
        gather.gather(paceline.tensor([3]))
    for columns, error in (
        ([], ValueError), ([(x, (4, 2))], ValueError), ([(x, ())], ValueError),
        ([(x.t(), (2, 3))], (TypeError, ValueError)), ([(np.array(["a"]), (1,))], TypeError),
        ([(x, (3, 2))] * 33, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            _C.row_gather(columns)
    index = paceline.tensor([0])
    for _ in range(8):
        gather.ask(index)
    with pytest.raises(RuntimeError, match="take one first"):
        gather.ask(index)


def test_samples_of_a_data_set_name_themselves_in_errors() -> None:
    class Broken(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> int:
            raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file") as caught:
        list(DataLoader(Broken(), sampler=[2]))
    assert caught.value.__notes__ == ["[DataLoader] the sample being read: 2"]
