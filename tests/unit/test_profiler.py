# SPDX-License-Identifier: Apache-2.0
"""How a profile's time divides, on events made by hand; the profiler of one process."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import paceline
from paceline import _C
from paceline._trace import Kind, each, span
from paceline.profiler import Averages, Event, Profiler, Record, ranks, schedule, session
from paceline.profiler.chrome import Process, events_text
from paceline.profiler.record import Breakdown, Thread, divide, merge, self_times
from paceline.profiler.table import averages, breakdown_table

MAIN, COMM = 10, 11


def event(kind: str, start: int, end: int, name: str = "x", number: int = -1) -> Event:
    return Event(kind, name, start, end, 0, number, "")


def record(main: list[Event], comm: list[Event] | None = None, end: int = 100) -> Record:
    threads = [Thread(MAIN, sorted(main, key=lambda e: e.end)), Thread(COMM, comm or [])]
    return Record(MAIN, 0, end, threads)


def test_each_moment_counts_once_for_the_outermost_reason() -> None:
    found = divide(
        record(
            [
                event("data", 0, 10),
                event("operator", 2, 5),  # collating a batch
                event("operator", 10, 30),
                event("backward", 30, 60),
                event("operator", 32, 35),  # an operator of the backward pass
                event("wait", 50, 58),  # for a bucket
                event("optimizer", 70, 90),
                event("communication", 75, 80),  # the ranks agree on a norm
                event("operator", 76, 77),
                event("user", 0, 100, "step"),
            ],
            [event("bucket", 40, 58), event("wait", 40, 45)],
        )
    )
    assert found.as_dict() == {
        "wall": 100, "forward": 20, "backward": 22, "optimizer": 15, "data": 10, "exposed": 13,
        "other": 20, "communication": 23, "steps": 0,
    }  # fmt: skip
    assert found.compute == 42
    assert found.hidden == pytest.approx(1 - 13 / 23)


def test_communication_that_overlaps_counts_once() -> None:
    comm = [event("bucket", 0, 30), event("bucket", 30, 50)]
    found = divide(record([event("communication", 40, 60)], comm))
    assert found.communication == 60
    assert found.exposed == 20


def test_events_outside_of_the_session_do_not_count() -> None:
    found = divide(record([event("operator", 90, 110)], [event("bucket", 95, 200)]))
    assert (found.forward, found.communication, found.other) == (0, 0, 100)


def test_times_of_an_event_without_what_is_inside() -> None:
    events = [
        event("operator", 0, 10, "a"),
        event("operator", 2, 4, "b"),
        event("operator", 4, 7, "c"),
        event("operator", 5, 6, "d"),
        event("operator", 10, 12, "e"),
    ]
    assert {e.name: own for e, own in self_times(events)} == {
        "a": 5, "b": 2, "c": 2, "d": 1, "e": 2,
    }  # fmt: skip


def test_events_of_two_recorders_become_one_line_for_each_thread() -> None:
    own = [Thread(MAIN, [event("backward", 10, 50, "pass")], 3)]
    others = {
        MAIN: [event("operator", 12, 20, "a"), event("operator", 45, 53, "b")],
        COMM: [event("operator", 0, 5, "c")],
    }
    main, comm = merge(own, others)
    assert [(e.name, e.start, e.end) for e in main.events] == [
        ("a", 12, 20), ("pass", 10, 50), ("b", 45, 50),
    ]  # fmt: skip
    assert main.lost == 3
    assert (comm.tid, [e.name for e in comm.events]) == (COMM, ["c"])


def test_averages_add_up_by_name_and_sort() -> None:
    found = averages(
        record(
            [event("operator", 0, 2000, "add"), event("operator", 3000, 4000, "add")]
            + [event("backward", 5000, 9000, "add")],
            [event("bucket", 0, 500, "reduce_bucket", 3)],
            end=10_000,
        )
    )
    by_key = {one.key: one for one in found}
    assert by_key["add"].count == 2
    assert by_key["add"].cpu_time_total == 3.0
    assert by_key["add"].cpu_time == 1.5
    assert set(by_key) == {"add", "add backward", "bucket 3"}
    lines = found.table(sort_by="count").splitlines()
    assert lines[2].startswith("add ")
    assert len(found.table(row_limit=1).splitlines()) == 3
    assert found.table().splitlines()[2].startswith("add backward")
    with pytest.raises(ValueError, match=r"\[table\] cannot sort by 'cuda_time_total'"):
        found.table(sort_by="cuda_time_total")


def test_a_table_has_a_line_for_each_rank() -> None:
    ranks = {
        rank: Breakdown(wall=10**9, forward=5 * 10**8, communication=10**8, steps=10)
        for rank in range(3)
    }
    text = breakdown_table(ranks, lost=7)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert "500.0 ms  50 %" in lines[2]
    assert lines[2].endswith("100 %")
    assert lines[5] == "10 steps, 100.0 ms each"
    assert lines[6] == "7 events came after the log was full and are missing above"


# --- the profiler -------------------------------------------------------------------------------


def test_operators_and_spans_are_recorded(tmp_path: Path) -> None:
    x = paceline.randn(8, 4, requires_grad=True)
    with Profiler(record_shapes=True) as prof:
        with span(Kind.DATA, "batch"):
            y = paceline.randn(4, 2)
        (x @ y).sum().backward()
        list(each([1, 2], Kind.USER, "item"))
    names = {(e.kind, e.label) for e in prof.events()}
    assert {("data", "batch"), ("operator", "matmul"), ("backward", "matmul backward")} <= names
    assert [e.name for e in prof.events()].count("item") == 3  # the end is looked for too
    (product,) = (e for e in prof.events() if e.label == "matmul")
    assert product.detail == "[8, 4] [4, 2]"
    prof.export_chrome_trace(tmp_path / "x.json")
    trace = json.loads((tmp_path / "x.json").read_text())
    (shown,) = (e for e in trace["traceEvents"] if e["name"] == "matmul")
    assert shown["args"] == {"input shapes": "[8, 4] [4, 2]"}
    assert shown["cat"] == "operator"
    assert isinstance(prof.key_averages(), Averages)
    assert "rank" in prof.table()
    assert _C.trace_begin() == 0


def test_other_threads_are_recorded_apart() -> None:
    def work() -> None:
        with span(Kind.USER, "there"):
            pass

    with Profiler() as prof:
        with span(Kind.USER, "here"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    names = {thread.tid: [e.name for e in thread.events] for thread in prof.record.threads}
    assert sorted(names.values()) == [["here"], ["there"]]
    assert names[threading.get_native_id()] == ["here"]


def test_a_schedule_keeps_the_active_steps_of_each_cycle() -> None:
    ready: list[tuple[int, list[str]]] = []

    def on_trace_ready(prof: Profiler) -> None:
        names = [e.name for e in prof.events() if e.kind == "user" and e.name != "step"]
        ready.append((prof.record.steps, names))

    plan = schedule(wait=1, warmup=1, active=2, repeat=2, skip_first=1)
    with Profiler(schedule=plan, on_trace_ready=on_trace_ready) as prof:
        for step in range(12):
            with span(Kind.USER, f"work {step}"):
                pass
            prof.step()
    assert ready == [(2, ["work 3", "work 4"]), (2, ["work 7", "work 8"])]
    assert len([e for e in prof.events() if e.name == "step"]) == 2


def test_a_cycle_that_is_cut_short_is_ready_at_the_end() -> None:
    ready: list[int] = []
    plan = schedule(wait=0, warmup=0, active=5)
    with Profiler(schedule=plan, on_trace_ready=lambda p: ready.append(p.record.steps)) as prof:
        prof.step()
        prof.step()
    assert ready == [2]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wait": -1, "warmup": 0, "active": 1}, "wait must be an integer of at least 0: got -1"),
        ({"wait": 0, "warmup": 0, "active": 0}, "active must be an integer of at least 1: got 0"),
    ],
)
def test_a_wrong_schedule_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        schedule(**options)


def test_what_cannot_be_is_said() -> None:
    prof = Profiler()
    with pytest.raises(RuntimeError, match="nothing is recorded yet"):
        prof.table()
    with pytest.raises(RuntimeError, match=r"step\(\) outside the profile"):
        prof.step()
    with prof, pytest.raises(RuntimeError, match="another profile is being taken"):
        Profiler().start()
    with Profiler():  # the first one has ended
        pass


def test_a_log_that_is_full_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "EVENTS_PER_THREAD", 10)
    with Profiler() as prof:
        list(each(range(30), Kind.USER, "item"))
    assert prof.record.lost == 21
    assert "21 events came after the log was full" in prof.table()


def test_an_error_inside_ends_the_profile_and_passes() -> None:
    ready: list[Any] = []
    with pytest.raises(KeyError), Profiler(on_trace_ready=ready.append):
        raise KeyError("x")
    assert ready == []
    assert _C.trace_begin() == 0


class TwoMachines:
    """The group of rank 1, whose machine's clock is `ahead` ns ahead of rank 0's."""

    world_size = 2

    def __init__(self, boot: str, ahead: int) -> None:
        self.boot, self.ahead = boot, ahead

    def barrier(self, *, depth: int) -> None:
        pass

    def all_gather_object(self, mine: tuple[str, int], *, depth: int) -> list[tuple[str, int]]:
        return [(self.boot or mine[0], mine[1] - self.ahead), mine]


@pytest.mark.parametrize(("boot", "shift"), [("another boot", -5_000), ("", 0)])
def test_clocks_of_two_machines_are_brought_together(boot: str, shift: int) -> None:
    group: Any = TwoMachines(boot, 5_000)
    assert ranks._shift(group) == shift
    process = Process(1, "host", 7, shift)
    (line,) = (t for t in events_text(record([event("data", 8_000, 9_000)]), process) if '"X"' in t)
    assert json.loads(line)["ts"] == (8_000 + shift) / 1000


def test_profiles_again_and_again_take_no_more_memory() -> None:
    def once() -> int:
        with Profiler():
            list(each(range(3000), Kind.USER, "item"))
        return _C.memory_stats()["in_use"]

    once()
    assert once() == once()
