# SPDX-License-Identifier: Apache-2.0
"""``Accelerator.profile`` on one and two processes: the trace of all ranks, and where time went."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from ways import run_ways

CATEGORIES = {
    "operator", "backward", "communication", "bucket", "wait", "data", "optimizer", "user",
}  # fmt: skip


def check_trace(path: Path) -> list[dict[str, Any]]:
    """Hold a file against the trace-event format; give its complete events."""
    trace = json.loads(path.read_text())
    assert isinstance(trace, dict)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    lines = defaultdict(list)
    named: set[tuple[str, int, int]] = set()
    for event in trace["traceEvents"]:
        assert {"name", "ph", "pid", "tid"} <= set(event)
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event.get("args", {}), dict)
        if event["ph"] == "M":
            key = {
                "process_name": "name", "thread_name": "name",
                "process_sort_index": "sort_index", "thread_sort_index": "sort_index",
            }[event["name"]]  # fmt: skip
            assert set(event["args"]) == {key}
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        assert event["ph"] == "X"
        assert event["cat"] in CATEGORIES
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        lines[event["pid"], event["tid"]].append(event)
    for (pid, tid), events in lines.items():
        assert ("process_name", pid, 0) in named
        assert ("thread_name", pid, tid) in named
        check_nesting(events)
    return [event for events in lines.values() for event in events]


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Fail if two events of a thread overlap and neither is inside the other."""
    # In whole nanoseconds: the file has three digits after the microsecond.
    spans = [(round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000), e) for e in events]
    open_until: list[int] = []
    for start, end, event in sorted(spans, key=lambda one: (one[0], -one[1])):
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], f"{event} ends after what it is inside of"
        open_until.append(end)


def test_the_check_finds_what_does_not_nest() -> None:
    def event(ts: float, dur: float) -> dict[str, Any]:
        return {"name": "x", "ph": "X", "ts": ts, "dur": dur}

    check_nesting([event(1, 5), event(2, 4), event(6, 1), event(1, 0.001)])
    with pytest.raises(AssertionError, match="ends after what it is inside of"):
        check_nesting([event(1, 5), event(2, 4.001)])


def train() -> None:
    import os
    import tempfile

    from paceline import Accelerator
    from paceline.utils.dataclasses import ProfileKwargs
    from rankside import ARGS, out
    from ways import torch

    folder = ARGS["folder"]
    handler = ProfileKwargs(output_trace_dir=folder)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters())
    data = torch.utils.data.TensorDataset(torch.randn(96, 32), torch.randint(0, 4, (96,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = torch.nn.CrossEntropyLoss()

    def steps(prof) -> None:  # type: ignore[no-untyped-def]  # shipped as source
        for x, y in loader:
            loss = criterion(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            prof.step()

    with accelerator.profile() as prof:
        steps(prof)
    own = {"lost": prof.record.lost, "steps": prof.record.steps, "rank": accelerator.process_index}
    own["ranks"] = {str(rank): b.as_dict() for rank, b in prof.ranks.items()}
    own["table"] = prof.table()
    own["averages"] = prof.key_averages().table(sort_by="cpu_time_total", row_limit=5)
    out(own)

    # One handler in place of the Accelerator's, and no files: nobody waits for anybody.
    shapes = ProfileKwargs(record_shapes=True)
    before = sorted(os.listdir(folder))
    if accelerator.is_main_process:
        with accelerator.profile(shapes) as alone:
            torch.ones(2, 3) + torch.ones(2, 3)
        out(alone.record.steps)
    accelerator.wait_for_everyone()
    assert sorted(os.listdir(folder)) == before

    # A schedule: the file holds the last cycle.
    ready = []
    with tempfile.TemporaryDirectory() as other:
        plan = {"wait": 1, "warmup": 0, "active": 2, "repeat": 1}
        handler = ProfileKwargs(
            schedule_option=plan,
            on_trace_ready=lambda p: ready.append(p.record.steps),
            output_trace_dir=other,
        )
        with accelerator.profile(handler) as prof:
            steps(prof)
        assert os.path.exists(os.path.join(other, f"profile_{accelerator.process_index}.json"))
    assert ready == [2], ready
    accelerator.end_training()


@pytest.mark.parametrize("n", [1, 2])
def test_a_profile_is_one_file_for_all_ranks_and_a_table(way: str, n: int, tmp_path: Path) -> None:
    results = run_ways(way, n, train, timeout=90, args={"folder": str(tmp_path)})
    reports = [result.outs[0] for result in results]
    expected = [f"profile_{rank}.json" for rank in range(n)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", *expected]

    events = check_trace(tmp_path / "profile.json")
    assert {event["pid"] for event in events} == set(range(n))
    kinds = {"operator", "backward", "data", "optimizer", "user"}
    if n == 2:
        kinds |= {"bucket", "wait", "communication"}
    assert kinds <= {event["cat"] for event in events}
    product = {"native": "linear", "torch": "aten::addmm"}[way]
    assert {e["pid"] for e in events if e["name"] == product} == set(range(n))
    for rank in range(n):
        own = check_trace(tmp_path / f"profile_{rank}.json")
        mine = [event for event in events if event["pid"] == rank]
        assert sorted(map(str, own)) == sorted(map(str, mine))
        steps = [e for e in own if e["cat"] == "user" and e["name"] == "step"]
        assert len(steps) == reports[rank]["steps"] == 12 // n
        assert len([e for e in own if e["name"] == "backward pass"]) == len(steps)
        assert reports[rank]["lost"] == 0
        assert len(reports[rank]["averages"].splitlines()) == 7
    if n == 2:
        check_one_clock(events)

    # Rank 0 tells of all, the others of themselves.
    assert set(reports[0]["ranks"]) == {str(rank) for rank in range(n)}
    for report in reports:
        assert str(report["rank"]) in report["ranks"]
        assert len(report["table"].splitlines()) == 2 + len(report["ranks"]) + 1
        for parts in report["ranks"].values():
            check_breakdown(parts, n)


def check_breakdown(parts: dict[str, int], n: int) -> None:
    names = ("forward", "backward", "optimizer", "data", "exposed", "other")
    assert sum(parts[name] for name in names) == parts["wall"]
    assert all(parts[name] >= 0 for name in names)
    assert all(parts[name] > 0 for name in ("forward", "backward", "optimizer", "data"))
    assert (parts["communication"] > 0) == (n == 2)
    assert (parts["exposed"] > 0) == (n == 2)


def check_one_clock(events: list[dict[str, Any]]) -> None:
    """A rank reduces no bucket of a pass before the others are in it, and none leaves it before."""
    found: list[list[tuple[dict[str, Any], list[dict[str, Any]]]]] = []
    for rank in range(2):
        own = sorted((e for e in events if e["pid"] == rank), key=lambda e: e["ts"])
        buckets = [e for e in own if e["cat"] == "bucket"]
        passes = [e for e in own if e["name"] == "backward pass"]
        found.append([(p, [b for b in buckets if within(b, p)]) for p in passes])
        assert sum(len(inside) for _, inside in found[rank]) == len(buckets) > 0
    assert len(found[0]) == len(found[1])
    for (one, mine), (other, theirs) in zip(*found, strict=True):
        assert [b["name"] for b in mine] == [b["name"] for b in theirs]
        assert [b["args"]["bytes"] for b in mine] == [b["args"]["bytes"] for b in theirs]
        assert all(b["args"]["bytes"] > 0 for b in mine)
        assert all(other["ts"] <= b["ts"] <= other["ts"] + other["dur"] for b in mine)
        assert all(one["ts"] <= b["ts"] <= one["ts"] + one["dur"] for b in theirs)


def within(event: dict[str, Any], whole: dict[str, Any]) -> bool:
    return bool(whole["ts"] <= event["ts"] <= whole["ts"] + whole["dur"])


@pytest.mark.parametrize("option", ["profile_memory", "with_stack", "with_flops", "with_modules"])
def test_an_option_that_cannot_be_honoured_is_refused_by_name(option: str) -> None:
    from paceline.utils.dataclasses import ProfileKwargs

    with pytest.raises(NotImplementedError, match=rf"ProfileKwargs\({option}=True\)"):
        ProfileKwargs(**{option: True})  # type: ignore[arg-type]  # one of the booleans


def test_a_device_that_nothing_runs_on_is_refused_by_name() -> None:
    from paceline.profiler.ranks import build
    from paceline.utils.dataclasses import ProfileKwargs

    with pytest.raises(NotImplementedError, match=r"activities=\['cuda'\].*add 'cpu'"):
        build(ProfileKwargs(activities=["cuda"]), 0)
    build(ProfileKwargs(activities=["cpu", "cuda"]), 0)


def test_an_error_in_the_block_is_what_is_raised(tmp_path: Path) -> None:
    def fails() -> None:
        from paceline import Accelerator
        from paceline.utils.dataclasses import ProfileKwargs
        from rankside import ARGS, RANK, failing

        accelerator = Accelerator(cpu=True)
        with failing(), accelerator.profile(ProfileKwargs(output_trace_dir=ARGS["folder"])):
            if RANK == 1:
                raise KeyError("mine")
            accelerator.wait_for_everyone()

    results = run_ways("native", 2, fails, args={"folder": str(tmp_path / "x")})
    assert results[1].exception["type"] == "KeyError"
    assert results[0].exception["type"] in ("RemoteError", "PeerLostError")
    assert not (tmp_path / "x").exists()
