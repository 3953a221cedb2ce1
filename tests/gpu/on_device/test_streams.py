# SPDX-License-Identifier: Apache-2.0
"""Streams and events: what runs where, what waits for what, and what is refused."""

from __future__ import annotations

import threading

import pytest

import paceline as torch
from paceline import _C

cuda = torch.cuda


def test_the_current_stream_is_the_threads() -> None:
    assert cuda.current_stream() == cuda.default_stream()
    side, other = cuda.Stream(), cuda.Stream(priority=-1)
    assert side != other
    assert other.priority == -1
    assert side.cuda_stream != cuda.default_stream().cuda_stream
    seen = []
    with cuda.stream(side):
        assert cuda.current_stream() == side
        with cuda.stream(other):
            assert cuda.current_stream() == other
            assert cuda.current_stream().priority == -1
        with cuda.stream(None):
            assert cuda.current_stream() == side
        thread = threading.Thread(target=lambda: seen.append(cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [cuda.default_stream()]
    assert cuda.current_stream("cuda:0") == cuda.default_stream()
    with pytest.raises(KeyError), cuda.stream(side):
        raise KeyError
    assert cuda.current_stream() == cuda.default_stream()
    cuda.set_stream(side)
    assert cuda.current_stream() == side
    cuda.set_stream(cuda.default_stream())


def test_streams_come_from_a_pool() -> None:
    made = [cuda.Stream() for _ in range(70)]
    assert 2 <= len(set(made)) <= 32
    assert "cuda_stream=0x" in repr(made[0])


def test_events_order_streams() -> None:
    side = cuda.Stream()
    x = torch.arange(5.0).to("cuda")
    for k in range(20):
        y = x * k
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            z = (y + 1) @ (y + 1)
            done = side.record_event()
        cuda.current_stream().wait_event(done)
        assert (z * 2).item() == 2 * sum((i * k + 1) ** 2 for i in range(5))


def test_events() -> None:
    event = cuda.Event()
    assert event.query()
    event.wait()
    event.synchronize()
    assert "not recorded" in repr(event)
    side = cuda.Stream()
    x = torch.ones(4, device="cuda")
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(30):
            x = x + 1
        event.record()
    event.synchronize()
    assert event.query()
    side.synchronize()
    assert side.query()
    assert x.tolist() == [31.0] * 4
    for _ in range(300):  # those that are gone serve again
        cuda.Event(enable_timing=True).record()


def test_elapsed_time() -> None:
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    x = torch.ones(4, device="cuda")
    start.record()
    for _ in range(30):
        x = x + 1
    end.record()
    cuda.synchronize()
    assert 0 < start.elapsed_time(end) < 60_000
    assert end.elapsed_time(start) == -start.elapsed_time(end)
    plain = cuda.Event()
    plain.record()
    with pytest.raises(ValueError, match="this event holds no time: got enable_timing=False"):
        plain.elapsed_time(end)
    with pytest.raises(ValueError, match="end_event was never recorded"):
        start.elapsed_time(cuda.Event(enable_timing=True))
    with pytest.raises(NotImplementedError, match="interprocess: got True"):
        cuda.Event(interprocess=True)


def test_a_model_on_a_side_stream() -> None:
    def train(side: cuda.Stream | None) -> list[float]:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        net.to("cuda")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        losses = []
        for _ in range(5):
            x, y = torch.randn(8, 6), torch.randint(3, (8,))
            with cuda.stream(side):
                if side is not None:
                    side.wait_stream(cuda.default_stream())
                loss = torch.nn.functional.cross_entropy(net(x.to("cuda")), y.to("cuda"))
            loss.backward()  # comes behind all streams, and they behind it
            with cuda.stream(side):
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            if side is not None:
                cuda.default_stream().wait_stream(side)
        return losses

    assert train(cuda.Stream()) == train(None)


def test_uploads_on_a_side_stream() -> None:
    side = cuda.Stream()
    total = torch.zeros(8, device="cuda")
    for k in range(12):
        host = torch.full((8,), float(k)).pin_memory()
        with cuda.stream(side):
            x = host.to("cuda", non_blocking=True)
        cuda.current_stream().wait_stream(side)
        x.record_stream(cuda.current_stream())
        total = total + x
        del x
    assert total.tolist() == [66.0] * 8


def test_numbers_that_are_no_streams() -> None:
    x = torch.ones(2, device="cuda")
    for call in (
        lambda: _C.cuda_stream_choose(99),
        lambda: _C.cuda_stream_handle(-1),
        lambda: _C.cuda_stream_synchronize(99),
        lambda: _C.record_stream(x, 99),
    ):
        with pytest.raises(ValueError, match="which was not made"):
            call()
    with pytest.raises(ValueError, match="expected the like of 'cuda:0'"):
        cuda.Stream("cpu")
    with pytest.raises(torch.errors.DeviceError):
        cuda.Stream("cuda:7")


def test_pinned_memory_is_kept_for_copies_of_all_streams() -> None:
    side = torch.cuda.Stream()
    ours, theirs = [], []
    for k in range(20):
        host = torch.full((64,), float(k)).pin_memory()
        ours.append(torch.empty(64, device="cuda"))
        ours[-1].copy_(host, non_blocking=True)
        with torch.cuda.stream(side):
            theirs.append(torch.empty(64, device="cuda"))
            theirs[-1].copy_(host, non_blocking=True)
        del host
    torch.cuda.synchronize()
    for k in range(20):
        assert ours[k].tolist() == theirs[k].tolist() == [float(k)] * 64
