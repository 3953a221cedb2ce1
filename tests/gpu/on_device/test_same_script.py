# SPDX-License-Identifier: Apache-2.0
"""The same training with the device as the only difference: losses are the CPU's within rounding.

A GPU sums products in another order, so losses differ by some units in the last place of
fp32 per step, and by bf16's where products are in bf16; a wrong or missing update differs by far
more: the losses move by 0.01 and more from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paceline as torch
import paceline.nn.functional as F
from paceline import Accelerator, PartialState, nn

FP32, HALF = 5e-5, 2e-3


class Net(nn.Module):
    """Embedding, attention, norm, dropout, linear layers with GELU, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 30)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        q, k, v = (t.reshape(*ids.shape, 2, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(mixed.transpose(1, 2).reshape(x.shape) * self.scale)
        return self.head(self.norm(x + self.mlp(x)))


def data() -> torch.utils.data.DataLoader:
    torch.manual_seed(1)
    ids = torch.randint(0, 30, (48, 7))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=8, shuffle=True
    )


def loss_of(model: Any, x: Any, y: Any) -> Any:
    return F.cross_entropy(model(x).reshape(-1, 30).float(), y.reshape(-1))


def plain(device: str, make: Any) -> list[float]:
    """The loop of a first tutorial, `device` as the only difference."""
    torch.manual_seed(0)
    model = Net().to(device)
    optimizer = make(model.parameters())
    losses = []
    for _ in range(2):
        for x, y in data():
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
    return losses


def far(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) == 12
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_plain_loop(name: str) -> None:
    options = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01}, "AdamW": {"lr": 0.01}}

    def make(parameters: Iterator[Any]) -> Any:
        return getattr(torch.optim, name)(parameters, **options[name])

    here, there = plain("cpu", make), plain("cuda", make)
    assert not far(here, there) > FP32
    assert here[0] - here[-1] > 0.05  # it learns


@pytest.fixture
def fresh() -> Iterator[None]:
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def with_accelerator(cpu: bool, precision: str, accumulation: int) -> list[float]:
    PartialState._reset_state()
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, gradient_accumulation_steps=accumulation
    )
    assert str(accelerator.device) == ("cpu" if cpu else "cuda")
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, data())
    losses = []
    for _ in range(2):
        for x, y in loader:
            assert x.is_cuda is not cpu
            with accelerator.accumulate(model):
                loss = loss_of(model, x, y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach()).mean().item())
    return losses


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("precision", "accumulation", "limit"),
    [("no", 1, FP32), ("no", 2, FP32), ("bf16", 1, HALF), ("fp16", 2, HALF)],
)
def test_with_an_accelerator(precision: str, accumulation: int, limit: float) -> None:
    here = with_accelerator(True, precision, accumulation)
    there = with_accelerator(False, precision, accumulation)
    assert not far(here, there) > limit


def test_an_overflow_leaves_a_step_out() -> None:
    weight = torch.ones(4, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale((weight * torch.tensor(float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1, 1, 1, 1]
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale((weight * 0.25).sum()).backward()
    scaler.step(optimizer)
    assert weight.tolist() == [0.75] * 4


def test_autocast_on_the_device() -> None:
    a = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert (a @ a).dtype is torch.bfloat16
    with torch.autocast(device_type="cuda", dtype=torch.float16):
        assert (a @ a).tolist() == [[2, 2], [2, 2]]


# -- modules that move ------------------------------------------------------------------------


def test_parameters_keep_their_identity() -> None:
    model = Net()
    before = list(model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)  # made first, as scripts do
    ids = torch.randint(0, 30, (2, 6))
    loss_of(model, ids, ids).backward()
    assert model.cuda() is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.is_cuda and p.is_leaf and p.requires_grad for p in model.parameters())
    assert all(p.grad is not None and p.grad.is_cuda for p in model.parameters())
    assert model.scale.is_cuda
    assert model.head.weight in optimizer.param_groups[0]["params"][-2:]
    optimizer.step()
    assert all(s["exp_avg"].is_cuda for s in optimizer.state.values())
    model.to("cpu", torch.float64)
    assert model.head.weight.dtype is torch.float64
    assert not model.scale.is_cuda


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_optimizers_state_follows_its_parameters(name: str) -> None:
    def steps(route: list[str]) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **options)
        for device in route:
            model.to(device)
            optimizer.zero_grad()
            model(torch.ones(4, 3, device=device)).square().sum().backward()
            optimizer.step()
        return [float(v) for v in model.weight.cpu().flatten()]

    here, there = steps(["cpu"] * 4), steps(["cpu", "cuda", "cuda", "cpu"])
    assert max(abs(a - b) for a, b in zip(here, there, strict=True)) < 1e-5


def test_layers_made_on_the_device() -> None:
    layer = nn.Linear(3, 2, device="cuda")
    assert layer.weight.is_cuda
    assert nn.Embedding(3, 2, device="cuda").weight.is_cuda
    assert nn.LayerNorm(3, device="cuda").bias.is_cuda
    torch.manual_seed(0)
    here = nn.Linear(3, 2)
    torch.manual_seed(0)
    assert torch.equal(nn.Linear(3, 2, device="cuda").weight.cpu(), here.weight)  # the same draw


# -- what is saved ----------------------------------------------------------------------------


def test_what_was_saved_on_one_device_loads_on_the_other(tmp_path: Path) -> None:
    for saved, loaded in (("cuda", "cpu"), ("cpu", "cuda")):
        torch.manual_seed(3)
        source = Net().to(saved)
        optimizer = torch.optim.AdamW(source.parameters(), lr=0.1)
        ids = torch.randint(0, 30, (2, 6))
        loss_of(source, ids.to(saved), ids.to(saved)).backward()
        optimizer.step()
        torch.save(
            {"model": source.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "f"
        )
        state = torch.load(tmp_path / "f")
        assert state["model"]["head.weight"].is_cuda is (saved == "cuda")  # back where it was
        assert not torch.load(tmp_path / "f", "cpu")["model"]["head.weight"].is_cuda
        target = Net().to(loaded)
        assert str(target.load_state_dict(state["model"])) == "<All keys matched successfully>"
        second = torch.optim.AdamW(target.parameters(), lr=0.1)
        second.load_state_dict(state["optimizer"])
        for p, q in zip(source.parameters(), target.parameters(), strict=True):
            assert q.is_cuda is (loaded == "cuda")
            assert torch.equal(p.cpu(), q.cpu())
        assert all(s["exp_avg_sq"].is_cuda is (loaded == "cuda") for s in second.state.values())
        mapped = torch.load(tmp_path / "f", map_location="cuda:0")
        assert mapped["model"]["head.weight"].is_cuda
        assert mapped["optimizer"]["state"][0]["exp_avg"].is_cuda


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("first_on_cpu", [True, False])
def test_a_run_goes_on_on_the_other_device(tmp_path: Path, first_on_cpu: bool) -> None:
    def run(cpu: bool, steps: int, load: bool) -> tuple[Accelerator, list[float]]:
        PartialState._reset_state()
        accelerator = Accelerator(cpu=cpu)
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model, optimizer, loader = accelerator.prepare(model, optimizer, data())
        if load:
            accelerator.load_state(tmp_path / "c")
        losses = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
        return accelerator, losses

    _, whole = run(True, 6, False)
    accelerator, begun = run(first_on_cpu, 3, False)
    accelerator.save_state(tmp_path / "c")
    _, rest = run(not first_on_cpu, 3, True)
    assert max(abs(a - b) for a, b in zip(whole, begun + rest, strict=True)) < FP32


@pytest.mark.usefixtures("fresh")
def test_a_window_that_is_half_full_is_kept(tmp_path: Path) -> None:
    def run(load: bool) -> list[float]:
        PartialState._reset_state()
        accelerator = Accelerator(gradient_accumulation_steps=2)
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = torch.arange(12.0).reshape(4, 3)
        loader = torch.utils.data.DataLoader(rows, batch_size=1)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if load:
            accelerator.load_state(tmp_path / "c")
            assert model.weight.grad is not None
            assert model.weight.grad.is_cuda
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).sum())
                optimizer.step()
                optimizer.zero_grad()
            if not load and model.weight.grad is not None and x[0, 0] == 6:
                accelerator.save_state(tmp_path / "c")
        return [float(v) for v in model.weight.cpu().flatten()]

    assert run(False) == run(True)
