# SPDX-License-Identifier: Apache-2.0
"""What the graph promises: accumulation, modes, errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from paceline import _C, amp


def leaf(*shape: int) -> paceline.Tensor:
    return paceline.ones(*shape).requires_grad_()


def test_gradients_add_up_over_passes() -> None:
    x = leaf(3)
    for _ in range(3):
        (2 * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [6.0, 6.0, 6.0]


def test_a_leaf_used_several_times_gets_the_sum() -> None:
    x = leaf(2)
    (x * x + 3 * x + x.sum()).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0, 7.0]  # 2x + 3 + 2 (the sum reaches both elements)


def test_one_weight_on_both_sides_of_a_product() -> None:
    w = (paceline.arange(9.0).reshape(3, 3) / 7).requires_grad_()
    (w @ w).sum().backward()
    a = np.arange(9.0).reshape(3, 3) / 7
    want = np.ones((3, 3)) @ a.T + a.T @ np.ones((3, 3))
    assert w.grad is not None
    assert np.allclose(w.grad.numpy(), want, rtol=1e-6)


@pytest.mark.parametrize(
    "index",
    [np.s_[:], np.s_[:, :], np.s_[..., :], np.s_[:, :, 1], np.s_[:, 1:3], np.s_[:, -2:],
     np.s_[::2, :], np.s_[:, 5:5], np.s_[None, :, 2], np.s_[:, None], np.s_[1, :, :], np.s_[:0]],
)  # fmt: skip
def test_the_gradient_of_an_index_is_zero_outside_it(index: object) -> None:
    values = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    x = paceline.tensor(values).requires_grad_()
    part = x[index]
    assert not part.is_leaf  # x[:] too is a tensor of its own
    (part * part).sum().backward()
    expected = np.zeros_like(values)
    expected[index] = 2 * values[index]  # type: ignore[index]
    assert x.grad is not None
    assert np.array_equal(x.grad.numpy(), expected)


def test_overlapping_parts_of_one_tensor_add_up() -> None:
    x = leaf(4, 6)
    (x[:, 0:2].sum() + 2 * x[:, 4:6].sum() + 4 * x[:, 1:5].sum()).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 5.0, 4.0, 4.0, 6.0, 2.0]] * 4


def test_no_grad_and_detach_record_nothing() -> None:
    x = leaf(2)
    with paceline.no_grad():
        assert not (x * 2).requires_grad
    assert not (x.detach() * 2).requires_grad
    assert (x * 2).requires_grad


def test_second_backward_says_what_to_do() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"second time.*retain_graph=True"):
        y.backward()


def test_retain_graph_allows_a_second_pass() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [4.0, 4.0]


def test_in_place_change_of_something_needed() -> None:
    x = leaf(2)
    y = x * 2
    z = (y * y).sum()
    with paceline.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


@pytest.mark.skipif(
    not _C.cpu_info()["avx512_bf16"]
    or _C.cpu_info()["amx_bf16"]
    or _C.cpu_info()["matmul"] == "blocked loops",
    reason="weights are copied for autocast here, and the gradient uses the copy",
)
def test_weight_changed_before_the_gradient_under_autocast() -> None:
    layer, x = paceline.nn.Linear(64, 64), paceline.ones(256, 64, requires_grad=True)
    with paceline.autocast("cpu", dtype=paceline.bfloat16):
        y = layer(x).sum()
    with paceline.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="'linear' was changed in place: shape"):
        y.backward()


def test_in_place_change_of_a_leaf() -> None:
    with pytest.raises(RuntimeError, match="leaf that requires grad"):
        leaf(2).add_(1)


def test_in_place_change_of_a_result_is_followed() -> None:
    x = leaf(2)
    y = x * 3
    y *= 2
    y += x
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0, 7.0]


def test_backward_needs_a_gradient_for_more_than_one_element() -> None:
    with pytest.raises(RuntimeError, match=r"one element: got shape \[2\]"):
        (leaf(2) * 2).backward()


def test_backward_of_what_needs_no_gradient() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        paceline.ones(1).sum().backward()


def test_grad_gives_and_leaves_the_leaves_alone() -> None:
    x = leaf(2)
    y = x * x
    (g,) = paceline.autograd.grad((y.sum(),), (y,), retain_graph=True)
    assert g.tolist() == [1.0, 1.0]
    (g,) = paceline.autograd.grad((y.sum(),), (x,))
    assert g.tolist() == [2.0, 2.0]
    assert x.grad is None


@pytest.mark.usefixtures("no_leaks")
def test_a_graph_of_a_hundred_thousand_calls_is_freed_without_recursion() -> None:
    x = leaf(1)
    y = x
    for _ in range(100_000):
        y = y + 1
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0
    del x, y


@pytest.mark.usefixtures("no_leaks")
def test_a_failing_backward_leaves_nothing_behind() -> None:
    x = leaf(4)
    with pytest.raises(RuntimeError):
        (x * x).backward()
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError):
        y.backward()
    del x, y


def test_autocast_computes_in_bf16_and_keeps_fp32_gradients() -> None:
    w, x = paceline.randn(8, 4).requires_grad_(), paceline.randn(3, 4)
    with paceline.autocast("cpu", paceline.bfloat16):
        y = F.linear(x, w)
        assert y.dtype == paceline.bfloat16
        loss = F.cross_entropy(y, paceline.zeros(3, dtype=paceline.int64))
        assert loss.dtype == paceline.float32
        assert F.softmax(y, dim=-1).dtype == paceline.float32
    loss.backward()
    assert w.grad is not None
    assert w.grad.dtype == paceline.float32


def test_autocast_casts_a_weight_once_per_change() -> None:
    w, x = paceline.randn(64, 64).requires_grad_(), paceline.randn(2, 64)
    with paceline.autocast("cpu", paceline.bfloat16), paceline.no_grad():
        F.linear(x, w)
        before = _C.memory_stats()["in_use"]
        for _ in range(4):
            F.linear(x, w)
        assert _C.memory_stats()["in_use"] == before  # the copy is kept, not made again
        old = F.linear(x, w).float()
        w.data.mul_(2.0)
        new = F.linear(x, w).float()
    assert np.allclose(new.numpy(), 2 * old.numpy())  # a change is seen at once


def test_autocast_with_rows_enough_rounds_a_weight_as_it_is_read() -> None:
    w, x = paceline.randn(96, 80).requires_grad_(), paceline.randn(300, 80).requires_grad_()
    g = paceline.randn(300, 96)
    with paceline.autocast("cpu", paceline.bfloat16):
        y = F.linear(x, w)
    y.backward(g.bfloat16())
    low_w = w.detach().bfloat16().requires_grad_()
    low_x = x.detach().bfloat16().requires_grad_()
    want = F.linear(low_x, low_w)
    want.backward(g.bfloat16())
    assert w.grad is not None
    assert x.grad is not None
    for got, other in ((y, want), (x.grad, low_x.grad), (w.grad, low_w.grad)):
        assert other is not None
        # The same sums in another order, rounded once: neighbours in bf16 at most.
        assert np.allclose(got.detach().float().numpy(), other.detach().float().numpy(),
                           rtol=2**-7, atol=1e-4)  # fmt: skip


def test_dtypes_that_differ_are_refused_without_autocast() -> None:
    x, w = paceline.randn(300, 80).bfloat16(), paceline.randn(96, 80)
    with pytest.raises(RuntimeError, match="must have one floating dtype"):
        F.linear(x, w)


def test_autocast_warns_once_where_it_will_not_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"name": "an older processor", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(_C, "cpu_info", lambda: old)
    amp._warn_if_not_faster.cache_clear()
    with pytest.warns(UserWarning, match="older processor.*will not be faster"):
        paceline.autocast("cpu", paceline.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paceline.autocast("cpu", paceline.bfloat16)  # a second time it says nothing


def test_ctrl_c_in_a_long_backward_pass() -> None:
    w = (paceline.randn(512, 512) / 23).requires_grad_()
    y = w
    for _ in range(250):
        y = y @ w
    hit: list[float] = []

    def interrupt() -> None:
        time.sleep(0.1)
        hit.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def train() -> None:
        while True:  # on a quick machine one pass may end before the signal comes
            y.sum().backward(retain_graph=True)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train()
    late = time.monotonic() - hit[0]
    thread.join()
    print(f"KeyboardInterrupt after {late * 1e3:.0f} ms")
    assert late < 5 * 0.1
    y.sum().backward()  # nothing is left in the graph
