# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy: what the two operators give, without the logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import paceline
import paceline.nn.functional as F
from numerics.compare import UNIT, assert_close
from paceline import _C, amp, nn

Tensor = paceline.Tensor
Options = nn.LinearCrossEntropyOptions
ROWS, WIDTH, CLASSES = 23, 16, 37
LOW = [paceline.bfloat16, paceline.float16]


def numbers(bias: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "x": rng.standard_normal((ROWS, WIDTH)),
        "w": rng.standard_normal((CLASSES, WIDTH)) * 0.3,
        "t": rng.integers(0, CLASSES, ROWS),
        "b": rng.standard_normal(CLASSES) if bias else None,
        "each": rng.uniform(0.2, 2.0, CLASSES),
        "g": rng.standard_normal(ROWS),
    }
    return made


def leaves(of: dict[str, Any], dtype: Any = paceline.float32) -> dict[str, Any]:
    made: dict[str, Any] = {"t": paceline.tensor(of["t"])}
    for name in ("x", "w", "b"):
        value = of[name]
        made[name] = None if value is None else paceline.tensor(value, dtype=dtype)
        if made[name] is not None:
            made[name].requires_grad_()
    wide = paceline.float64 if dtype == paceline.float64 else paceline.float32
    made["each"] = paceline.tensor(of["each"], dtype=wide)
    return made


def fused(of: dict[str, Any], **how: Any) -> Tensor:
    return F.linear_cross_entropy(of["x"], of["w"], of["t"], linear_bias=of["b"], **how)


def pair(of: dict[str, Any], options: Any = None, **how: Any) -> Tensor:
    return F.cross_entropy(F.linear(of["x"], of["w"], of["b"]), of["t"], **how)


def results(loss: Tensor, of: dict[str, Any], g: Any) -> list[np.ndarray]:
    loss.backward(paceline.tensor(g, dtype=loss.dtype) if loss.ndim else None)
    given = [of[k].grad for k in ("x", "w", "b") if of[k] is not None]
    return [np.asarray(t.detach().double().numpy()) for t in (loss, *given)]


CASES = list(product(["mean", "sum", "none"], [0.0, 0.1], [False, True], [None, 7, 23]))
SOME = [("mean", 0.0, True, 7), ("mean", 0.1, False, None), ("sum", 0.1, True, 7),
        ("none", 0.1, True, 7), ("none", 0.0, False, None)]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        *((paceline.float32, case) for case in CASES),
        *((dtype, case) for dtype in (paceline.float64, *LOW) for case in SOME),
    ],
    ids=str,
)
def test_it_is_the_pair(dtype: paceline.dtype, case: tuple[str, float, bool, int | None]) -> None:
    """In a model of this dtype, and under autocast to it."""
    reduction, smoothing, weighted, rows = case
    for auto in (False, True) if dtype in LOW else (False,):
        of = numbers(bias=rows != 7)
        found = []
        for call in (pair, fused):
            made = leaves(of, paceline.float32 if auto else dtype)
            with paceline.autocast("cpu", dtype if auto else paceline.bfloat16, enabled=auto):
                loss = call(
                    made, reduction=reduction, label_smoothing=smoothing, ignore_index=3,
                    weight=made["each"] if weighted else None,
                    options=Options(batch_chunk_size=rows) if rows else None,
                )  # fmt: skip
            assert loss.dtype == (
                paceline.float64 if dtype == paceline.float64 else paceline.float32
            )
            found.append(results(loss, made, of["g"]))
        unit = UNIT[str(dtype).removeprefix("paceline.")]
        # The slopes are rounded to the dtype before and after a factor; sums of up to 37.
        for i, (want, got) in enumerate(zip(*found, strict=True)):
            assert_close(got, want, 64 * unit, f"result {i}")


@pytest.mark.parametrize("theirs", ["whole", "chunked"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_pytorchs(theirs: str, reduction: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this PyTorch has no linear_cross_entropy")
    of, found = numbers(bias), []
    options = (
        torch.nn.LinearCrossEntropyOptions(batch_chunk_size=7) if theirs == "chunked" else None
    )
    given = {
        k: None if of[k] is None else torch.tensor(of[k], dtype=torch.float32, requires_grad=True)
        for k in "xwb"
    }
    loss = torch.nn.functional.linear_cross_entropy(
        given["x"], given["w"], torch.tensor(of["t"]), linear_bias=given["b"], options=options,
        weight=torch.tensor(of["each"], dtype=torch.float32), reduction=reduction, ignore_index=3,
    )  # fmt: skip
    loss.backward(torch.tensor(of["g"], dtype=torch.float32) if loss.ndim else None)
    found = [loss.detach().numpy(), *(t.grad.numpy() for t in given.values() if t is not None)]
    made = leaves(of)
    mine = fused(
        made,
        weight=made["each"],
        reduction=reduction,
        ignore_index=3,
        options=Options(batch_chunk_size=7) if theirs == "chunked" else None,
    )
    for want, got in zip(found, results(mine, made, of["g"]), strict=True):
        assert_close(got, want.astype(np.float64), 64 * UNIT["float32"], theirs)


@pytest.mark.parametrize("low", [None, *LOW], ids=str)
def test_nothing_counts(low: paceline.dtype | None) -> None:
    """As PyTorch: a mean of nothing is NaN; gradients of nothing are 0."""
    of = {**numbers(), "t": np.full(ROWS, -100)}
    for reduction in ("mean", "sum", "none"):
        made = leaves(of)
        with paceline.autocast("cpu", low or paceline.bfloat16, enabled=low is not None):
            loss = fused(made, reduction=reduction, options=Options(batch_chunk_size=7))
        got, *grads = results(loss, made, of["g"])
        assert np.isnan(got) if reduction == "mean" else not got.any()
        assert all(not g.any() for g in grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(reduction: str) -> None:
    of = numbers()
    made = leaves({**of, "x": np.zeros((0, WIDTH)), "t": np.zeros(0, dtype=np.int64)})
    got, dx, *grads = results(fused(made, reduction=reduction), made, np.zeros(0))
    assert dx.shape == (0, WIDTH)
    assert all(g.any() == 0 for g in grads)
    assert np.isnan(got) if reduction == "mean" else got.sum() == 0.0


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb", "xwb"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_what_is_wanted(wanted: str, reduction: str) -> None:
    of = numbers()
    whole, some = leaves(of), leaves(of)
    for name in set("xwb") - set(wanted):
        some[name].requires_grad_(False)
    for made in (whole, some):
        loss = fused(made, reduction=reduction, options=Options(batch_chunk_size=7))
        loss.backward(paceline.tensor(of["g"], dtype=loss.dtype) if loss.ndim else None)
    for name in "xwb":
        assert (some[name].grad is None) == (name not in wanted)
        if name in wanted:
            assert_close(some[name].grad.numpy(), whole[name].grad.numpy(), 1e-6, name)


def test_without_gradients() -> None:
    made = leaves(numbers())
    with paceline.no_grad():
        loss = fused(made)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(pair(made).item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_that_is_kept(reduction: str) -> None:
    made = leaves(numbers())
    loss = fused(made, reduction=reduction)
    g = paceline.ones(ROWS) if loss.ndim else None
    loss.backward(g, retain_graph=True)
    once = [made[k].grad.numpy().copy() for k in "xwb"]
    loss.backward(g)
    for k, first in zip("xwb", once, strict=True):
        assert_close(made[k].grad.numpy(), 2 * first, 1e-6, k)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward(g)
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        fused(made).backward(create_graph=True)


def test_gradients_without_leaves_and_factors() -> None:
    made = leaves(numbers())
    dw, dx = paceline.autograd.grad(fused(made) * 3.0, (made["w"], made["x"]))
    assert made["w"].grad is None
    want = paceline.autograd.grad(pair(made) * 3.0, (made["w"], made["x"]))
    assert_close(dw.numpy(), want[0].numpy(), 64 * UNIT["float32"], "dw")
    assert_close(dx.numpy(), want[1].numpy(), 64 * UNIT["float32"], "dx")


def test_a_weight_changed_before_the_backward_pass() -> None:
    """Gradients that are kept are of the weight that was; others are refused."""
    made, kept = leaves(numbers()), leaves(numbers())
    fused(kept).backward()
    loss, rows = fused(made), fused(made, reduction="none")
    with paceline.no_grad():
        made["w"].mul_(2.0)
    loss.backward()
    assert np.array_equal(made["w"].grad.numpy(), kept["w"].grad.numpy())
    with pytest.raises(RuntimeError, match="'linear_cross_entropy' was changed in place"):
        rows.sum().backward()


def test_tied_to_an_embedding_and_accumulated() -> None:
    rng = np.random.default_rng(1)
    table, ids = rng.standard_normal((CLASSES, WIDTH)) * 0.3, rng.integers(0, CLASSES, (2, ROWS))
    grads = []
    for call in (pair, fused):
        w = paceline.tensor(table, dtype=paceline.float32, requires_grad=True)
        for step in ids:
            t = paceline.tensor(step)
            of = {"x": F.embedding(t, w) * 1.5, "w": w, "t": t, "b": None}
            (call(of) / 2).backward()
        assert w.grad is not None
        grads.append(w.grad.numpy())
    assert_close(grads[1], grads[0], 64 * UNIT["float32"], "the table")


def test_with_a_scaler() -> None:
    """fp16: a mean over rows does not lose its small slopes before the scale comes."""
    grads = []
    for call in (pair, fused):
        made = leaves(numbers())
        scaler = amp.GradScaler("cpu", init_scale=2.0**12)
        optimizer = paceline.optim.SGD([made["x"], made["w"], made["b"]], lr=0.0)
        with paceline.autocast("cpu", paceline.float16):
            loss = call(made)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads.append([made[k].grad.numpy() for k in "xwb"])
    for want, got in zip(*grads, strict=True):
        assert_close(got, want, 64 * UNIT["float16"], "unscaled")


def test_tiny_slopes_of_fp16_are_kept() -> None:
    """A slope of 1e-5 over 4096 rows is 2e-9: 0 in fp16, were it divided before it is summed."""
    rows, classes = 4096, 64
    x = paceline.zeros(rows, 4).requires_grad_()
    w = paceline.zeros(classes, 4).requires_grad_()
    b = paceline.zeros(classes)
    b[0] = 8.0  # the others' probability is 3e-4
    with paceline.autocast("cpu", paceline.float16):
        loss = F.linear_cross_entropy(
            x + 1.0, w, paceline.zeros(rows).long(), linear_bias=b,
            options=Options(batch_chunk_size=512),
        )  # fmt: skip
    loss.backward()
    p = np.exp(-8.0) / (1 + (classes - 1) * np.exp(-8.0))
    assert w.grad is not None
    assert_close(w.grad.numpy()[1:], np.full((classes - 1, 4), p), 4 * UNIT["float16"], "dw")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_are_never_whole(reduction: str) -> None:
    """The peak of live bytes: gradients and a chunk, not rows times classes."""
    rows, width, classes = 4096, 4, 4096
    rng = np.random.default_rng(2)
    whole = rows * classes * 4

    def peak(call: Callable[..., Tensor]) -> int:
        x = paceline.tensor(rng.standard_normal((rows, width)).astype("f4"), requires_grad=True)
        w = paceline.tensor(rng.standard_normal((classes, width)).astype("f4"), requires_grad=True)
        t = paceline.tensor(rng.integers(0, classes, rows))
        of = {"x": x, "w": w, "t": t, "b": None}
        call(of, reduction=reduction).sum().backward()  # libraries make their own memory once
        x.grad = w.grad = None
        _C.reset_memory_peak()
        before = _C.memory_stats()["in_use"]
        call(of, reduction=reduction).sum().backward()
        return _C.memory_stats()["peak"] - before

    assert peak(pair) >= whole
    chunked = peak(lambda of, **how: fused(of, options=Options(batch_chunk_size=64), **how))
    assert chunked < whole / 16
    assert peak(fused) < whole * 0.45  # of its own accord, too


def test_chunks_as_they_are_chosen() -> None:
    assert Options()._rows(512, 768, 50257) == 0
    assert Options(batch_chunk_size=40)._rows(512, 768, 50257) == 40
    assert Options(chunking_method=None)._rows(512, 768, 50257) == 512
    assert Options(chunking_method="aspect_ratio")._rows(512, 768, 50257) == 8
    assert Options(chunking_method="aspect_ratio:2")._rows(512, 768, 50257) == 4
    torch = pytest.importorskip("torch")
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        for method, sizes in product(
            ["aspect_ratio", "aspect_ratio:3"], [(5, 4, 7), (512, 64, 999)]
        ):
            theirs = torch.nn.LinearCrossEntropyOptions(chunking_method=method)
            want = max(theirs._compute_batch_chunk_size(*sizes), 1)
            assert Options(chunking_method=method)._rows(*sizes) == want


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": (ROWS, 2, WIDTH)}, RuntimeError, r"input: got shape \(23, 2, 16\), expected"),
        ({"w": (CLASSES, 5)}, RuntimeError, r"linear_weight: got shape \(37, 5\), expected"),
        ({"w": (2, 3, WIDTH), "x": (WIDTH,)}, RuntimeError, r"needs rows: got input of shape"),
        ({"b": (3,)}, RuntimeError, r"linear_bias: got shape \(3,\), expected \(37,\)"),
        ({"t": (5,)}, ValueError, r"a target of class indices \(N\): got \[5\] for input \[23, 16"),
        ({"each": (4,)}, RuntimeError, r"weight must have shape \[37\]: got \[4\]"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(change: dict[str, Any], error: Any, words: str) -> None:
    made = leaves(numbers())
    for name, shape in change.items():
        made[name] = paceline.zeros(shape, dtype=made[name].dtype)
    with pytest.raises(error, match=words):
        fused(made, weight=made["each"])


def test_what_else_is_refused() -> None:
    made = leaves(numbers())
    with pytest.raises(ValueError, match="reduction: got 'median'"):
        fused(made, reduction="median")
    with pytest.raises(RuntimeError, match="ignore_index is for class indices"):
        fused({**made, "t": paceline.zeros(ROWS, CLASSES)}, ignore_index=1)
    with pytest.raises(RuntimeError, match="one floating dtype: got float32 and float64"):
        fused({**made, "w": made["w"].detach().double(), "b": None})
    with pytest.raises(RuntimeError, match="an int64 target of class indices: got int32"):
        fused({**made, "t": made["t"].int()})
    with pytest.raises(IndexError, match=r"target out of range: got 37, expected \[0, 37\)"):
        fused({**made, "t": paceline.full((ROWS,), CLASSES)}, weight=made["each"])
    with pytest.raises(RuntimeError, match="acc_dtype: got float64 for an input of float32"):
        fused(made, options=Options(acc_dtype=paceline.float64))
    for bad, words in [
        ({"batch_chunk_size": 0}, "batch_chunk_size: got 0"),
        ({"chunking_method": "ratio"}, "chunking_method: got 'ratio'"),
        ({"chunking_method": "aspect_ratio:0"}, "chunking_method: got 'aspect_ratio:0'"),
        ({"acc_policy": "best"}, "acc_policy: got 'best'"),
        ({"acc_dtype": paceline.bfloat16}, "acc_dtype: got .*bfloat16"),
    ]:
        with pytest.raises(ValueError, match=words):
            Options(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="disagree: 8 rows"):
        Options(batch_chunk_size=3, chunking_method="aspect_ratio")._rows(512, 768, 50257)


def test_the_module() -> None:
    paceline.manual_seed(0)
    head = nn.LinearCrossEntropyLoss(WIDTH, CLASSES, bias=True, weight=paceline.rand(CLASSES) + 0.1)
    of = leaves(numbers())
    want = F.cross_entropy(head.linear(of["x"]), of["t"], weight=head.weight)
    assert head(of["x"], of["t"]).item() == pytest.approx(want.item(), rel=1e-6)
    assert list(head.state_dict()) == ["weight", "linear.weight", "linear.bias"]
    wide = nn.LinearCrossEntropyLoss(WIDTH, 5, out_features=(2, 3), bias=True, options=Options())
    with pytest.warns(UserWarning, match="options are not used"):
        loss = wide(of["x"], paceline.randint(0, 5, (ROWS, 2, 3)))
    loss.backward()
    assert wide.linear.weight.grad is not None
    with pytest.raises(RuntimeError, match=r"weight: got shape \(3,\), expected \(5,\)"):
        nn.LinearCrossEntropyLoss(WIDTH, 5, weight=paceline.ones(3))
    with pytest.raises(RuntimeError, match="label_smoothing: got 2"):
        nn.LinearCrossEntropyLoss(WIDTH, 5, label_smoothing=2.0)
