# SPDX-License-Identifier: Apache-2.0
"""The tensor's methods and protocols."""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import numpy as np
import pytest

import paceline
from paceline.errors import DeviceError
from unit import cases

DTYPES = cases.DTYPES


# -- making -----------------------------------------------------------------------------------


def test_dtypes_of_data() -> None:
    assert paceline.tensor([1, 2]).dtype is paceline.int64
    assert paceline.tensor([1, 2.5]).dtype is paceline.float32
    assert paceline.tensor([True]).dtype is paceline.bool
    assert paceline.tensor(np.float64(1)).dtype is paceline.float64
    assert paceline.tensor([np.arange(2), np.arange(2)]).shape == (2, 2)
    assert paceline.tensor([paceline.tensor(1.0), paceline.tensor(2.0)]).tolist() == [1, 2]
    assert paceline.tensor(paceline.ones(2), dtype=paceline.int64).dtype is paceline.int64
    assert paceline.tensor([[]]).shape == (1, 0)
    with pytest.raises(ValueError, match="got"):
        paceline.tensor([[1], [1, 2]])
    with pytest.raises(TypeError):
        paceline.tensor("text")
    with pytest.raises(TypeError, match="write paceline.float32"):
        paceline.zeros(2, dtype=np.dtype("float32"))


def test_default_dtype() -> None:
    paceline.set_default_dtype(paceline.float64)
    try:
        assert paceline.tensor(0.1).item() == 0.1
        assert paceline.zeros(1).dtype is paceline.float64
        assert paceline.randn(1).dtype is paceline.float64
        assert paceline.nn.Linear(1, 1).weight.dtype is paceline.float64
    finally:
        paceline.set_default_dtype(paceline.float32)
    with pytest.raises(TypeError, match="floating"):
        paceline.set_default_dtype(paceline.int64)


@pytest.mark.parametrize("code", cases.MAKERS + cases.METHODS)
def test_methods_as_pytorch(code: str) -> None:
    # Summation order differs; both round to within a few units of the last place.
    wanted = cases.expected("method", code)
    cases.assert_same(cases.method(paceline, code), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("code", cases.KINDS["promotion"][1])
def test_promotion_as_pytorch(code: str) -> None:
    a, b = code.split()
    wanted = cases.expected("promotion", code)
    assert cases.promotion(paceline, code) == wanted
    own = paceline.promote_types(getattr(paceline, a), getattr(paceline, b))
    assert own.name == wanted[0]


INDICES = [
    (0,), (-1,), (slice(None), 1), (..., 0), (None, 1), (slice(1, 3),), (slice(None, None, 2),),
    (slice(None), slice(-2, None)), (0, slice(1, 2), None), (1, 2, 3), (..., None, 0),
    ([0, 2],), (slice(None), [1, 1, 0]), ([0, 1], [2, 0]), ([[0, 1], [1, 0]],),
    ([0, 1], slice(None), [3, 3]), (-1, [0, 1]), (slice(0, 0),), ([],),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_as_numpy(index: tuple[object, ...]) -> None:
    a = np.arange(60).reshape(3, 4, 5)
    t = paceline.tensor(a)
    key = index if len(index) > 1 else index[0]
    wanted = a[tuple(np.array(i, dtype=int) if isinstance(i, list) else i for i in index)]
    np.testing.assert_array_equal(t[key].numpy(), wanted)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_assignment_as_numpy(index: tuple[object, ...]) -> None:
    a = np.arange(60).reshape(3, 4, 5)
    t = paceline.tensor(a)
    key = index if len(index) > 1 else index[0]
    a[tuple(np.array(i, dtype=int) if isinstance(i, list) else i for i in index)] = -7
    t[key] = -7
    np.testing.assert_array_equal(t.numpy(), a)


def test_masks() -> None:
    a = np.arange(12.0).reshape(3, 4)
    t = paceline.tensor(a)
    np.testing.assert_array_equal(t[t > 5].numpy(), a[a > 5])
    np.testing.assert_array_equal(t[t[:, 0] > 3].numpy(), a[a[:, 0] > 3])
    t[t > 5] = 0
    a[a > 5] = 0
    np.testing.assert_array_equal(t.numpy(), a)
    t[0] = paceline.tensor([9.0, 8.0, 7.0, 6.0])
    a[0] = [9, 8, 7, 6]
    np.testing.assert_array_equal(t.numpy(), a)


@pytest.mark.parametrize("bad", [3, -4, (0, 4), (0, 0, 0)])
def test_index_errors(bad: object) -> None:
    with pytest.raises(IndexError):
        paceline.zeros(3, 4)[bad]


# -- protocols --------------------------------------------------------------------------------


def test_python_protocols() -> None:
    t = paceline.arange(3)
    assert [int(v) for v in t] == [0, 1, 2]
    assert 2 in t
    assert 5 not in t
    assert {t: 1}[t] == 1
    assert list(range(5))[paceline.tensor(2)] == 2
    assert float(paceline.tensor(1.5)) == 1.5
    assert bool(paceline.tensor(True))
    assert weakref.ref(t)() is t
    with pytest.raises(TypeError, match="0-d"):
        iter(paceline.tensor(1))
    with pytest.raises(TypeError):
        range(paceline.tensor(1.5))
    with pytest.raises((RuntimeError, ValueError)):
        bool(t)
    with pytest.raises((RuntimeError, ValueError)):
        t.item()


def test_total_loss_from_zero() -> None:
    total = 0
    for _ in range(3):
        total += paceline.tensor(1.5, requires_grad=True).detach()
    assert total.item() == 4.5
    assert sum([paceline.tensor(1.0), paceline.tensor(2.0)]).item() == 3.0


@pytest.mark.parametrize("name", DTYPES)
def test_pickle_and_deepcopy(name: str) -> None:
    t = paceline.arange(6).reshape(2, 3).to(getattr(paceline, name)).t()
    for again in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        assert again.dtype is t.dtype
        assert paceline.equal(again, t)
        assert again.data_ptr() != t.data_ptr()


def test_pickle_of_parameters() -> None:
    p = paceline.nn.Parameter(paceline.ones(2))
    p.grad = paceline.ones(2)
    for again in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert type(again) is paceline.nn.Parameter
        assert again.requires_grad
    assert copy.deepcopy(p).grad is not None
    both = copy.deepcopy([p, p])
    assert both[0] is both[1]
    with pytest.raises(RuntimeError, match="leaf"):
        pickle.dumps(p * 2)
    assert pickle.loads(pickle.dumps(paceline.bfloat16)) is paceline.bfloat16
    assert pickle.loads(pickle.dumps(paceline.device("cpu"))) == paceline.device("cpu")


def test_data_and_flags() -> None:
    t = paceline.ones(2, requires_grad=True)
    t.data.add_(1)
    assert t.tolist() == [2, 2]
    t.data = paceline.zeros(2)
    assert t.requires_grad
    assert t.is_leaf
    assert t.tolist() == [0, 0]
    assert not t.detach().requires_grad
    assert t.requires_grad_(False) is t
    assert not t.requires_grad
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        paceline.arange(2).requires_grad_()


def test_to() -> None:
    t = paceline.ones(2)
    assert t.to("cpu") is t
    assert t.to(paceline.device("cpu"), non_blocking=True) is t
    assert t.to(paceline.float32) is t
    assert t.to(paceline.float32, copy=True) is not t
    assert t.to("cpu", paceline.int64).dtype is paceline.int64
    assert t.to(other=paceline.zeros(1, dtype=paceline.float64)).dtype is paceline.float64
    assert t.cpu() is t
    for leave in (lambda: t.to("cuda"), t.cuda, lambda: paceline.zeros(1, device="cuda:0")):
        with pytest.raises(DeviceError, match="CUDA"):
            leave()
    with pytest.raises(TypeError, match="unknown"):
        t.to(dtyp=paceline.int64)


def test_devices() -> None:
    assert str(paceline.device("cuda:1")) == "cuda:1"
    assert paceline.device("cuda", 1) == paceline.device("cuda:1")
    assert repr(paceline.device("cpu")) == "device(type='cpu')"
    assert len({paceline.device("cpu"), paceline.device("cpu")}) == 1
    assert paceline.ones(1).device == paceline.device("cpu")
    assert not paceline.cuda.is_available()
    assert paceline.cuda.device_count() == 0
    for bad in ("gpu", "cuda:x"):
        with pytest.raises(RuntimeError, match="device"):
            paceline.device(bad)


def test_limits() -> None:
    assert paceline.finfo(paceline.float32).max == np.finfo(np.float32).max
    assert paceline.finfo(paceline.float16).eps == np.finfo(np.float16).eps
    assert paceline.finfo(paceline.float64).tiny == np.finfo(np.float64).tiny
    assert paceline.iinfo(paceline.int32).min == np.iinfo(np.int32).min
    assert paceline.iinfo(paceline.uint8).max == 255


def test_grad_modes() -> None:
    x = paceline.ones(2, requires_grad=True)
    with paceline.no_grad():
        assert not (x * 2).requires_grad
        with paceline.enable_grad():
            assert (x * 2).requires_grad
        assert not paceline.is_grad_enabled()
    assert (x * 2).requires_grad

    @paceline.no_grad()
    def called() -> bool:
        return (x * 2).requires_grad

    @paceline.no_grad
    def plain() -> bool:
        return (x * 2).requires_grad

    assert not called()
    assert not plain()
    paceline.set_grad_enabled(False)
    assert not paceline.is_grad_enabled()
    paceline.set_grad_enabled(True)
    with paceline.set_grad_enabled(False):
        assert not paceline.is_grad_enabled()
    assert paceline.is_grad_enabled()
    with paceline.inference_mode():
        assert not paceline.is_grad_enabled()
    assert paceline.is_grad_enabled()


def test_backward_arguments() -> None:
    x = paceline.tensor([1.0, 2.0], requires_grad=True)
    (x * x).backward(paceline.tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2, 40]
    y = (x * 3).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [8, 46]
    with pytest.raises(RuntimeError):
        y.backward()
    with pytest.raises(NotImplementedError, match="create_graph"):
        (x * 2).sum().backward(create_graph=True)
    (g,) = paceline.autograd.grad((x**3).sum(), x)
    assert g.tolist() == [3, 12]


def test_updates_by_hand() -> None:
    p = paceline.nn.Parameter(paceline.ones(2))
    (p * p).sum().backward()
    with paceline.no_grad():
        p -= 0.1 * p.grad
        p.sub_(p.grad, alpha=0.1)
        p.add_(p.grad, alpha=-0.1)
    p.data -= 0.1 * p.grad
    assert p.tolist() == pytest.approx([0.2, 0.2])
    assert type(p) is paceline.nn.Parameter
    assert p.is_leaf
    p.grad = None
    with pytest.raises(RuntimeError, match="in place"):
        p.add_(1)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        p.grad = paceline.ones(3)


def test_max_sends_the_gradient_to_the_place() -> None:
    x = paceline.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 1.0]], requires_grad=True)
    x.max(1).values.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0], [1, 0, 0]]


# -- random -----------------------------------------------------------------------------------


def test_seed_repeats() -> None:
    def draw() -> list[object]:
        return [
            paceline.randn(5).tolist(),
            paceline.rand(2, 3).tolist(),
            paceline.randint(0, 10, (7,)).tolist(),
            paceline.randperm(9).tolist(),
            paceline.multinomial(paceline.ones(5), 3).tolist(),
        ]

    paceline.manual_seed(3)
    first = draw()
    state = paceline.get_rng_state()
    later = draw()
    paceline.manual_seed(3)
    assert draw() == first
    paceline.set_rng_state(state)
    assert draw() == later
    assert later != first
    assert paceline.initial_seed() == 3


def test_generators_are_their_own() -> None:
    one, two = paceline.Generator().manual_seed(5), paceline.Generator().manual_seed(5)
    a = paceline.randn(4, generator=one)
    paceline.randn(4)
    assert paceline.equal(a, paceline.randn(4, generator=two))
    assert one.initial_seed() == 5
    two.set_state(one.get_state())
    default = paceline.manual_seed(9)
    assert default is paceline.default_generator
    assert default.initial_seed() == 9
    a = paceline.rand(3)
    default.manual_seed(9)
    assert paceline.equal(paceline.rand(3, generator=default), a)
    assert paceline.equal(paceline.rand(3, generator=one), paceline.rand(3, generator=two))
    again = pickle.loads(pickle.dumps(one))
    assert paceline.equal(paceline.rand(3, generator=one), paceline.rand(3, generator=again))


def test_randint_forms() -> None:
    for t in (
        paceline.randint(0, 2, (1000,)),
        paceline.randint(2, (1000,)),
        paceline.randint(low=0, high=2, size=(1000,)),
        paceline.randint(0, 2, size=[1000]),
    ):
        assert t.dtype is paceline.int64
        assert sorted(set(t.tolist())) == [0, 1]
    assert paceline.randint(-3, -2, (4,)).tolist() == [-3] * 4
    with pytest.raises(RuntimeError, match="low < high"):
        paceline.randint(2, 2, (1,))
    with pytest.raises(TypeError):
        paceline.randint(3)


def test_distributions() -> None:
    paceline.manual_seed(0)
    n = 40_000  # the mean's error is then 0.005 at one sigma; 5 sigma are allowed
    x = paceline.randn(n)
    assert abs(x.mean().item()) < 0.025
    assert abs(x.std().item() - 1) < 0.025
    u = paceline.rand(n)
    assert 0 <= u.min().item()
    assert u.max().item() < 1
    assert abs(u.mean().item() - 0.5) < 0.01
    assert sorted(paceline.randperm(100).tolist()) == list(range(100))
    b = paceline.bernoulli(paceline.full((n,), 0.3))
    assert abs(b.mean().item() - 0.3) < 0.015


def test_multinomial() -> None:
    paceline.manual_seed(0)
    weights = paceline.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    drawn = paceline.multinomial(weights, 4000, replacement=True)
    assert drawn.shape == (2, 4000)
    assert set(drawn[1].tolist()) == {0}
    share = (drawn[0] == 2).double().mean().item()
    assert abs(share - 0.75) < 0.04  # 5 sigma of 4000 draws are 0.034
    assert 0 not in set(drawn[0].tolist())
    for _ in range(20):
        assert sorted(paceline.multinomial(paceline.ones(4), 4).tolist()) == [0, 1, 2, 3]
    for bad, count in (([-1.0, 2.0], 1), ([0.0, 0.0], 1), ([1.0, 0.0], 2), ([1.0], 2)):
        with pytest.raises(RuntimeError, match="multinomial"):
            paceline.multinomial(paceline.tensor(bad), count)


def test_autocast() -> None:
    a = paceline.ones(4, 4)
    with paceline.autocast("cpu", dtype=paceline.bfloat16):
        assert (a @ a).dtype is paceline.bfloat16
        assert a.sum().dtype is paceline.float32
        with paceline.autocast("cpu", enabled=False):
            assert (a @ a).dtype is paceline.float32
    assert (a @ a).dtype is paceline.float32
    with paceline.autocast("cpu", paceline.float16):
        assert (a @ a).dtype is paceline.float16
    with pytest.raises(ValueError, match="dtype"):
        paceline.autocast("cpu", paceline.float64)
    with pytest.raises(DeviceError):
        paceline.autocast("cuda")


def test_io_of_nothing_is_not_special() -> None:
    file = io.BytesIO()
    paceline.save(paceline.zeros(0, 2), file)
    file.seek(0)
    assert paceline.load(file).shape == (0, 2)
