# SPDX-License-Identifier: Apache-2.0
"""Tensors on the GPU: made, moved, read, written, refused; and memory."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import paceline
from gpu.place import on_gpu, on_host
from paceline import _C
from paceline.errors import DeviceError

DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


def sample(*shape: int) -> paceline.Tensor:
    return paceline.tensor(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4, 5), (70, 33)], ids=str)
def test_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    x = (sample(*shape) * 3).to(getattr(paceline, name))
    there = _C.to_device(x, 0, False)
    assert (there._device_index, there.dtype, there.shape) == (0, x.dtype, x.shape)
    assert _C.to_device(there, 0, False) is there
    back = _C.to_device(there, -1, False)
    assert back._device_index == -1
    assert back.tolist() == x.tolist() == there.tolist()


@pytest.mark.parametrize("to_gpu", [True, False])
def test_strided_both_ways(to_gpu: bool) -> None:
    x = sample(4, 6, 8)
    views = [lambda t: t.permute(2, 0, 1), lambda t: t[::2, 1:4, ::3], lambda t: t[1].t(),
             lambda t: t[0, 0, 0].expand(3, 2), lambda t: t[:, 5:5]]  # fmt: skip
    for view in views:
        want = view(x).tolist()
        got = on_gpu(view(x)) if to_gpu else on_host(view(on_gpu(x)))
        assert got.tolist() == want


def test_a_copy_into_a_strided_place_of_another_dtype() -> None:
    x = sample(4, 6)
    place = on_gpu(paceline.zeros(6, 8, dtype=paceline.float64))
    _C.copy_(place[:, ::2], x.t())
    want = paceline.zeros(6, 8, dtype=paceline.float64)
    want[:, ::2] = x.t()
    assert place.tolist() == want.tolist()
    host = paceline.zeros(4, 6, dtype=paceline.int64)
    _C.copy_(host, on_gpu(x * 10))
    assert host.tolist() == (x * 10).to(paceline.int64).tolist()


@pytest.mark.parametrize("name", DTYPES)
def test_made_there(name: str) -> None:
    code = getattr(paceline, name)
    for make in (
        lambda d: paceline.ones(3, 2, dtype=code, device=d),
        lambda d: paceline.zeros(7, dtype=code, device=d),
        lambda d: paceline.full((2,), 1, dtype=code, device=d),
        lambda d: paceline.tensor([[1, 0], [1, 1]], dtype=code, device=d),
    ):
        assert make("cuda").tolist() == make("cpu").tolist()
        assert make("cuda")._device_index == 0


def test_the_streams_of_random_numbers_are_the_cpus() -> None:
    for make in (
        lambda d, g: _C.uniform((3, 5), -1.0, 2.0, 6, g, d),
        lambda d, g: _C.normal((1000,), 0.0, 1.0, 7, g, d),
        lambda d, g: _C.randint((77,), -5, 9, 3, g, d),
        lambda d, g: _C.randperm(50, g, d),
        lambda d, g: _C.dropout(_C.full((31,), 1.0, 6, d), 0.4, g),
    ):
        here, there = (make(d, paceline.Generator().manual_seed(5)) for d in (-1, 0))
        assert there._device_index == 0
        # Bit for bit where no library function of the GPU comes in.
        assert np.allclose(there.tolist(), here.tolist(), rtol=1e-6, atol=1e-7)


def test_reading_waits_and_copies() -> None:
    x = on_gpu(paceline.tensor([2.5]))
    assert x.item() == 2.5
    assert float(x) == 2.5
    assert bool(x > 2)
    assert int(x) == 2
    assert "2.5" in repr(x)
    assert on_gpu(paceline.arange(3))[on_gpu(paceline.tensor(1))].item() == 1


def test_written_in_place() -> None:
    x, want = on_gpu(sample(4, 5)), sample(4, 5)
    for t in (x, want):
        t[1] = 7
        t[:, 2] = paceline.tensor([1.0, 2.0, 3.0, 4.0])
        t += 1
        t *= 2.0
        t[t > 3] = 0
        t[[0, 3]] = 9
        _C.add_(t, t, 0.5)
    assert x.tolist() == want.tolist()
    version = x._version
    x += 1
    assert x._version == version + 1


def test_two_devices_are_refused_once_for_all() -> None:
    x, y = on_gpu(sample(3)), sample(3)
    for call in (lambda: x + y, lambda: y * x, lambda: x > y, lambda: _C.cat([x, y], 0),
                 lambda: _C.where(x > 0, x, y), lambda: _C.matmul(x, y)):  # fmt: skip
        with pytest.raises(RuntimeError, match="two devices: got cuda:0 and cpu"):
            call()
    with pytest.raises(RuntimeError, match="two devices"):
        y += x
    scalar = paceline.tensor(1.0)
    with pytest.raises(RuntimeError, match="does not fit in place"):
        scalar += x
    with pytest.raises(RuntimeError, match="lies where its tensor does"):
        y.grad = x
    with pytest.raises(RuntimeError, match="lie where its output does"):
        (x.requires_grad_() * 2).backward(y)


@pytest.mark.parametrize("dtype", [paceline.float32, paceline.float64, paceline.int64], ids=str)
def test_a_number_of_the_cpu_meets_a_tensor_of_the_gpu(dtype: paceline.dtype) -> None:
    x, k = sample(3), paceline.tensor(3, dtype=dtype)
    there = on_gpu(x)
    for call in (lambda t: t * k, lambda t: k - t, lambda t: t >= k, lambda t: _C.maximum(t, k)):
        assert call(there)._device_index == 0
        assert call(there).dtype == call(x).dtype
        assert call(there).tolist() == call(x).tolist()
    there *= k
    assert there.tolist() == (x * k).tolist()


def test_gradients_go_back_where_they_came_from() -> None:
    x = sample(3, 2).requires_grad_()
    k = paceline.tensor(2.0, requires_grad=True)
    moved = _C.to_device(x, 0, False)
    ((moved * k) * moved).sum().backward()
    assert x.grad is not None
    assert k.grad is not None
    assert (x.grad._device_index, k.grad._device_index) == (-1, -1)
    assert np.allclose(x.grad.numpy(), 4 * x.detach().numpy())
    assert k.grad.item() == pytest.approx(float((x * x).sum()), rel=1e-6)
    there = on_gpu(sample(2)).requires_grad_()
    _C.to_device(there, -1, False).sum().backward()
    assert there.grad is not None
    assert there.grad._device_index == 0


def test_what_the_host_cannot_look_at_says_what_to_do() -> None:
    x = on_gpu(sample(3))
    with pytest.raises(BufferError, match="cpu"):
        memoryview(x)
    with pytest.raises(RuntimeError, match="only memory of the host"):
        _C.pin_memory(x)
    order = on_gpu(paceline.arange(4))
    for call in (
        lambda: _C.distributed_indices(4, 2, 0, False, order),
        lambda: _C.row_gather([(paceline.ones(4, 2), (4, 2))]).gather(order),
        lambda: _C.row_gather([(x, (3,))]),
    ):
        with pytest.raises(NotImplementedError, match=r"lies on cuda:0.*pass x.cpu"):
            call()


def test_pinned_memory() -> None:
    x = sample(40, 50)
    p = _C.pin_memory(x)
    assert p._is_pinned
    assert not x._is_pinned
    assert _C.pin_memory(p) is p
    assert p.tolist() == x.tolist()
    moved = [_C.to_device(_C.pin_memory(x * k), 0, True) for k in range(20)]
    # Each source is gone by now, and its memory may not have been given to the next copy.
    for k, t in enumerate(moved):
        assert t.tolist() == (x * k).tolist()
    assert p[3]._is_pinned  # a view


@pytest.mark.parametrize("n", [5, 1 << 18, 1 << 21])
def test_a_source_may_change_after_an_upload(n: int) -> None:
    x = paceline.arange(n).to(paceline.float32)
    moved = []
    for k in range(4):
        x.fill_(float(k))
        moved.append(_C.to_device(x, 0, k % 2 == 1))
    x.fill_(99.0)
    for k, t in enumerate(moved):
        assert (float(t.min()), float(t.max())) == (k, k)


def test_an_index_out_of_range_is_told_when_somebody_waits() -> None:
    table = on_gpu(sample(4, 3))
    rows = _C.embedding(table, on_gpu(paceline.tensor([1, 9])), -1)
    with pytest.raises(IndexError, match=r"index out of range: got 9, expected \[-4, 4\)"):
        rows.tolist()
    _C.cuda_synchronize()  # once
    x = on_gpu(paceline.tensor([1, 0]))
    y = x // on_gpu(paceline.tensor([1, 0]))
    with pytest.raises(ValueError, match="integer division by zero"):
        _C.cuda_synchronize()
    assert (y[0].item(), x.tolist()) == (1, [1, 0])


def test_one_gpu_per_process() -> None:
    _C.cuda_open(None, 0)
    assert _C.cuda_current() == 0
    with pytest.raises(DeviceError, match="one GPU per process: got cuda:1, expected cuda:0"):
        _C.cuda_open(None, 1)
    with pytest.raises(DeviceError, match="no such GPU: got cuda:99"):
        _C.cuda_properties(None, 99)
    with pytest.raises(DeviceError, match="cuda:3 is not open"):
        _C.empty((2,), 6, 3)
    assert _C.cuda_properties(None, 0)["memory"] > 0


def test_memory_is_counted_and_given_back() -> None:
    gc.collect()
    _C.cuda_trim()
    before = _C.cuda_memory(True)
    x = _C.empty((1 << 20,), 6, 0)
    during = _C.cuda_memory(False)
    assert during["allocated"] - before["allocated"] >= 4 << 20
    del x
    after = _C.cuda_memory(False)
    assert after["allocated"] == before["allocated"]
    assert after["peak"] >= during["allocated"]
    assert after["reserved"] > before["reserved"]
    _C.cuda_trim()
    assert _C.cuda_memory(True)["reserved"] == before["reserved"]


def test_out_of_memory_names_who_holds_what() -> None:
    total = _C.cuda_memory(False)["total"]
    held = _C.empty((total // 2,), 1, 0)
    cached = _C.empty((total // 4,), 1, 0)
    del cached
    # Fits only once the free block has gone back to the device.
    more = _C.empty((total // 5 * 2,), 1, 0)
    with pytest.raises(MemoryError, match=r"out of device memory: .* MiB are in use \(tensors"):
        _C.empty((total // 2,), 1, 0)
    del held, more
    _C.cuda_trim()
    assert _C.full((4,), 1, 6, 0).tolist() == [1.0] * 4


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left_behind() -> None:
    x = on_gpu(sample(8, 8)).requires_grad_()
    for _ in range(3):
        (x.exp() * 2).sum().backward()
    with pytest.raises(RuntimeError):
        x + sample(8, 8)
    del x


def _many_calls() -> None:
    x = on_gpu(sample(6, 4)).requires_grad_()
    k = paceline.tensor(0.5, requires_grad=True)
    y = _C.cat([(x * k).exp(), _C.softmax(x, 1)], 0)
    (_C.matmul(y, x.t()) + 1.0).sum().backward()
    assert x.grad is not None
    _C.leaf_norm([x])
    _C.leaf_scale_([x], 0.5, False)
    _C.sgd_step([x], None, None, True, 0.1, 0.0, 0.0, 0.0, False, False, 1.0)
    _C.nonzero(x > 0)
    _C.to_device(_C.pin_memory(sample(3)), 0, True)
    _C.copy_(on_gpu(sample(4, 6)).t(), sample(6, 4))
    x.detach()[1:3] = 2
    x.tolist()


@pytest.mark.usefixtures("no_leaks")
def test_no_allocation_that_fails_leaves_something_behind() -> None:
    _many_calls()
    failures = 0
    for n in range(1, 1000):
        _C.fail_alloc_at(n, False)
        try:
            _many_calls()
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            _C.fail_alloc_at(0, False)
    assert failures > 20
    _many_calls()
