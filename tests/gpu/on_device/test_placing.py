# SPDX-License-Identifier: Apache-2.0
"""Tensors made, moved, shown, indexed and pinned on a GPU, as scripts do it."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import pytest

import paceline as torch

RANDOM = {
    "rand": lambda **k: torch.rand(7, 3, **k),
    "randn": lambda **k: torch.randn(7, 3, **k),
    "randint": lambda **k: torch.randint(0, 9, (7, 3), **k),
    "randperm": lambda **k: torch.randperm(11, **k),
    "bernoulli": lambda **k: torch.bernoulli(torch.full((50,), 0.3, **k)),
    "multinomial": lambda **k: torch.multinomial(torch.ones(9, **k), 4),
    "normal": lambda **k: torch.normal(torch.ones(5, **k), 2.0),
    "rand_like": lambda **k: torch.rand_like(torch.ones(6, **k)),
}
MADE = {
    "tensor": lambda **k: torch.tensor([[1, 2], [3, 4]], **k),
    "as_tensor": lambda **k: torch.as_tensor([1.5, 2.5], **k),
    "zeros": lambda **k: torch.zeros(2, 3, **k),
    "ones": lambda **k: torch.ones((2, 3), dtype=torch.float64, **k),
    "full": lambda **k: torch.full((4,), 7, **k),
    "arange": lambda **k: torch.arange(3, 9, 2, **k),
    "linspace": lambda **k: torch.linspace(0, 1, 5, **k),
    "eye": lambda **k: torch.eye(3, 4, **k),
    "zeros_like": lambda **k: torch.zeros_like(torch.ones(3), **k),
    "full_like": lambda **k: torch.full_like(torch.ones(3), 2.5, **k),
}


def test_asking_opens_nothing() -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() >= 1
    assert not torch.cuda.is_initialized() or torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", [*MADE, *RANDOM])
def test_the_same_numbers_on_either_device(name: str) -> None:
    make: Any = {**MADE, **RANDOM}[name]
    torch.manual_seed(5)
    here = make()
    torch.manual_seed(5)
    there = make(device="cuda")
    assert there.device == torch.device("cuda:0")
    assert there.is_cuda
    assert not here.is_cuda
    assert there.dtype == here.dtype
    assert torch.equal(there.cpu(), here)


def test_likes_are_made_beside() -> None:
    x = torch.ones(2, 3, device="cuda")
    for t in (torch.zeros_like(x), torch.empty_like(x), x.new_zeros(2), x.new_ones(3),
              x.new_full((2,), 4), x.new_tensor([1.0]), x.new_empty(2)):  # fmt: skip
        assert t.is_cuda
    assert not x.new_zeros(2, device="cpu").is_cuda
    assert not torch.zeros_like(x, device="cpu").is_cuda


def test_moving() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    y = x.to("cuda:0")
    assert y.to("cuda") is y
    assert y.cuda() is y
    assert x.cpu() is x
    assert x.to(y).is_cuda
    assert x.to("cuda", torch.float64).dtype is torch.float64
    assert x.to(device="cuda", dtype=torch.int64, non_blocking=True).tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert y.to("cuda", copy=True) is not y
    assert y.T.cpu().tolist() == x.T.tolist()  # strided
    assert x.T.cuda().tolist() == x.T.tolist()
    assert y.to(torch.float16).is_cuda
    assert y.type_as(x).is_cuda is False
    assert y.get_device() == 0
    assert x.get_device() == -1
    assert torch.zeros(0, 3).cuda().shape == (0, 3)


def test_a_gradient_goes_back_to_where_it_came_from() -> None:
    x = torch.ones(3, requires_grad=True)
    (x.cuda() * 2).sum().cpu().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]
    assert not x.grad.is_cuda
    leaf = torch.ones(3, device="cuda", requires_grad=True)
    (leaf * 3).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.is_cuda
    assert leaf.is_leaf


def test_two_devices_in_one_call_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"cuda:0 and cpu.*\.to\(device\)"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert (torch.ones(3, device="cuda") + torch.tensor(2.0)).tolist() == [3, 3, 3]


def test_text() -> None:
    x = torch.tensor([1.0, 2.0], device="cuda")
    assert repr(x) == "tensor([1., 2.], device='cuda:0')"
    assert repr(torch.tensor(3, device="cuda")) == "tensor(3, device='cuda:0')"
    assert str(x.device) == "cuda:0"
    assert f"{torch.tensor(0.5, device='cuda'):.2f}" == "0.50"
    assert "..." in repr(torch.zeros(2000, device="cuda"))


def test_numbers_and_lists() -> None:
    x = torch.tensor([[1, 2], [3, 4]], device="cuda")
    assert x.tolist() == [[1, 2], [3, 4]]
    assert x.sum().item() == 10
    assert int(x[1, 1]) == 4
    assert bool((x > 0).all())
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert 3 in x


def test_numpy_wants_the_cpu() -> None:
    numpy = pytest.importorskip("numpy")
    x = torch.tensor([1.0, 2.0], device="cuda")
    with pytest.raises(TypeError, match=r"can't convert a cuda:0 tensor to numpy.*\.cpu\(\)"):
        x.numpy()
    with pytest.raises(TypeError, match="can't convert a cuda:0 tensor"):
        numpy.asarray(x)
    assert x.cpu().numpy().tolist() == [1.0, 2.0]
    assert x.numpy(force=True).tolist() == [1.0, 2.0]
    with pytest.raises((BufferError, RuntimeError), match="Unsupported device"):
        numpy.from_dlpack(x)
    assert numpy.from_dlpack(x, device="cpu").tolist() == [1.0, 2.0]
    assert torch.as_tensor(numpy.ones(2), device="cuda").is_cuda


def test_indexing() -> None:
    x = torch.arange(12.0, device="cuda").reshape(3, 4)
    assert x[1].tolist() == [4, 5, 6, 7]
    assert x[[0, 2]].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert x[torch.tensor([2, 0])].is_cuda  # an index may come from the CPU
    assert x[x > 9].tolist() == [10, 11]
    assert x[(x > 9).cpu()].tolist() == [10, 11]
    x[0] = 5
    x[1, 2] = torch.tensor(9.0)
    x[[2]] = torch.zeros(1, 4, device="cuda")
    assert x.cpu().tolist() == [[5, 5, 5, 5], [4, 5, 9, 7], [0, 0, 0, 0]]
    x[:, 0] = [1.0, 2.0, 3.0]
    assert x[:, 0].tolist() == [1, 2, 3]
    assert torch.tril(torch.ones(2, 2, device="cuda")).tolist() == [[1, 0], [1, 1]]
    assert x.flip(1)[0].tolist() == [5, 5, 5, 1]


def test_copies() -> None:
    x = torch.tensor([1.0, 2.0], device="cuda", requires_grad=True)
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.is_cuda
        assert twin.requires_grad
        assert twin.tolist() == [1, 2]
    x.data.copy_(torch.tensor([3.0, 4.0]))
    assert x.tolist() == [3, 4]
    y = torch.zeros(2)
    y.copy_(x.detach())
    assert y.tolist() == [3, 4]


def test_pinned_memory() -> None:
    x = torch.arange(5.0)
    p = x.pin_memory()
    assert p.is_pinned()
    assert not x.is_pinned()
    assert p.pin_memory() is p
    assert torch.tensor([1, 2], pin_memory=True).is_pinned()
    assert torch.empty(3, pin_memory=True).is_pinned()
    total = torch.zeros(5, device="cuda")
    for _ in range(20):  # each copy is under way when its memory is dropped
        total += (torch.arange(5.0) + 1).pin_memory().to("cuda", non_blocking=True)
    assert total.tolist() == [20, 40, 60, 80, 100]
    on_gpu = torch.ones(2, device="cuda")
    assert on_gpu.pin_memory() is on_gpu


def test_memory_is_counted() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x = torch.zeros(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() >= before + (4 << 20)
    del x
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + (4 << 20)
    assert torch.cuda.memory_reserved() >= torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    torch.cuda.synchronize()
    torch.cuda.synchronize("cuda:0")


def test_statistics_of_memory() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_stats()
    x = torch.zeros(11 << 18, device="cuda")  # 11 MiB: a segment of its own
    during = torch.cuda.memory_stats()
    for name, least in (
        ("allocated_bytes.all.current", 11 << 20),
        ("reserved_bytes.all.current", 11 << 20),
        ("allocation.all.current", 1),
        ("segment.all.current", 1),
        ("num_device_alloc", 1),
    ):
        assert during[name] >= before[name] + least, name
    del x
    torch.cuda.empty_cache()
    after = torch.cuda.memory_stats()
    assert after["segment.all.current"] == before["segment.all.current"]
    assert after["num_device_free"] > before["num_device_free"]
    assert torch.cuda.max_memory_reserved() >= during["reserved_bytes.all.current"]
    assert "num_device_alloc" in torch.cuda.memory_summary()


def test_training_asks_for_no_more_memory_after_its_second_step() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.GELU(), torch.nn.Linear(300, 10))
    model.to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    asked = []
    for _ in range(6):
        x = torch.randn(33, 64).pin_memory().to("cuda", non_blocking=True)
        y = torch.randint(10, (33,)).to("cuda")
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        asked.append(torch.cuda.memory_stats()["num_device_alloc"])
    assert asked[1:] == asked[1:2] * 5


def test_released_memory_goes_back_to_the_gpu() -> None:
    from paceline.utils import release_memory

    x = torch.zeros(8 << 20, device="cuda")
    del x
    before = torch.cuda.memory_reserved()
    release_memory()
    assert torch.cuda.memory_reserved() <= before - (32 << 20)


def test_names_of_older_scripts() -> None:
    from paceline.cuda.amp import GradScaler, autocast

    torch.cuda.init()
    x = torch.ones(2, 2, device="cuda")
    with autocast():
        assert (x @ x).dtype is torch.float16
    with torch.cuda.amp.autocast(dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
    assert GradScaler(init_scale=8.0).get_scale() == 8.0
    with torch.cuda.device(0), torch.cuda.device("cuda"):
        assert torch.empty(1, device="cuda").device.index == 0
    with pytest.raises(torch.errors.DeviceError, match="one device per process"):
        torch.cuda.device(1).__enter__()
    torch.cuda.manual_seed(5)
    assert torch.cuda.initial_seed() == 5
    state = torch.cuda.get_rng_state_all()
    first = torch.rand(3, device="cuda").tolist()
    torch.cuda.set_rng_state_all(state)
    assert torch.rand(3, device="cuda").tolist() == first
    torch.cuda.seed()
    assert torch.rand(3, device="cuda").tolist() != first
    for record in (
        torch.cuda.CUDAGraph,
        lambda: torch.cuda.graph(None),
        lambda: torch.cuda.make_graphed_callables(None, ()),
    ):
        with pytest.raises(NotImplementedError, match="CUDA graphs are not built"):
            record()
    assert not hasattr(torch.cuda, "nvtx")


def test_questions() -> None:
    assert torch.cuda.current_device() == 0
    assert torch.cuda.get_device_capability() >= (7, 5)
    assert torch.cuda.get_device_name(0) == torch.cuda.get_device_properties("cuda").name
    assert torch.cuda.is_bf16_supported() is (torch.cuda.get_device_capability() >= (8, 0))
    torch.cuda.set_device(0)
    with pytest.raises(torch.errors.DeviceError, match="one device per process: got cuda:1"):
        torch.cuda.set_device(1)
    with pytest.raises(torch.errors.DeviceError, match="cuda:1"):
        torch.ones(1, device="cuda:1")
    with pytest.raises(ValueError, match="expected the like of 'cuda:0'"):
        torch.cuda.synchronize("cpu")


def test_seeding_starts_the_one_stream() -> None:
    torch.cuda.manual_seed_all(3)
    a = torch.rand(4, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(a.cpu(), torch.rand(4))


def test_an_index_out_of_range_is_told_at_the_latest_when_waiting() -> None:
    table = torch.zeros(3, 2, device="cuda")
    with pytest.raises(IndexError):
        table[torch.tensor([5])]


def test_a_forked_child_is_refused() -> None:
    torch.ones(1, device="cuda")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device="cuda")
            said = b"no error"
        except torch.errors.DeviceError as error:
            said = str(error).encode()
        os.write(write, said)
        os._exit(0)
    os.waitpid(child, 0)
    assert b"[ones] CUDA cannot be used in a forked process" in os.read(read, 500)
