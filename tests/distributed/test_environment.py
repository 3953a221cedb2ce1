# SPDX-License-Identifier: Apache-2.0
"""What the environment says about a process, and the frames of the rendezvous as a parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.distributed import frames
from paceline.distributed.environment import (
    Job,
    check_machines,
    init_timeout_s,
    patience_ms,
    read_job,
)
from paceline.distributed.links import socket_name
from paceline.errors import ConfigError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_nothing_set_is_a_job_of_one() -> None:
    assert read_job({}) == Job()


def test_torchrun_s_variables() -> None:
    assert read_job(TORCHRUN) == Job(3, 4, 3, 4, "127.0.0.1", 29500, 29501, "none", 2)
    assert read_job({**TORCHRUN, "PACELINE_RUN_ID": "x", "PACELINE_PORT": "7"}).run_id == "x"
    assert read_job(TORCHRUN, rank=1, world=2, address=("h", 5)).where == "h:5"


def test_a_world_of_one_s_own_is_not_the_launcher_s() -> None:
    job = read_job(TORCHRUN, rank=0, world=1)
    assert (job.local_rank, job.local_world) == (0, 1)
    check_machines(job)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"RANK": "4"}, "got RANK=4 with WORLD_SIZE=4, expected 0 to 3"),
        ({"RANK": "x"}, "RANK cannot be used: got 'x'"),
        ({"RANK": ""}, "RANK is not set"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE cannot be used: got '0'"),
        ({"MASTER_PORT": "70000"}, "expected at most 65535"),
        ({"MASTER_PORT": "", "TORCHELASTIC_RUN_ID": ""}, "MASTER_PORT is not set"),
        ({"LOCAL_WORLD_SIZE": "-1"}, "LOCAL_WORLD_SIZE cannot be used"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_job({**TORCHRUN, **change})
    assert text in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_init_timeout() -> None:
    assert init_timeout_s(None, {}) == 300.0
    assert init_timeout_s(None, {"PACELINE_INIT_TIMEOUT": "2.5"}) == 2.5
    assert init_timeout_s(1.0, {"PACELINE_INIT_TIMEOUT": "2.5"}) == 1.0
    for bad in ("0", "-1", "x", "nan"):
        with pytest.raises(ConfigError, match="init_timeout"):
            init_timeout_s(None, {"PACELINE_INIT_TIMEOUT": bad})


def test_patience() -> None:
    assert patience_ms({}) == [30_000, 5_000, 30_000, 3_000]
    assert patience_ms({"PACELINE_REPORT_AFTER": "0", "PACELINE_FROZEN_AFTER": "1.5"}) == [
        0,
        5_000,
        1_500,
        3_000,
    ]
    for bad in ("-1", "x", "nan", "1e9"):
        with pytest.raises(ConfigError, match="PACELINE_SUSPECT_AFTER cannot be used"):
            patience_ms({"PACELINE_SUSPECT_AFTER": bad})


def test_several_machines() -> None:
    def check(**change: str) -> None:
        check_machines(read_job({**TORCHRUN, **change}))

    check(RANK="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="192.0.2.1")
    for here in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        check(MASTER_ADDR=here)
    with pytest.raises(ConfigError, match=r"another machine: got 192\.0\.2\.1"):
        check(MASTER_ADDR="192.0.2.1")
    for rank, local_rank, local_world in (("0", "1", "2"), ("3", "0", "2"), ("3", "2", "2")):
        with pytest.raises(ConfigError, match="must follow one another"):
            check(RANK=rank, LOCAL_RANK=local_rank, LOCAL_WORLD_SIZE=local_world)
    with pytest.raises(ConfigError, match="need a port"):
        check(RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_PORT="0")


def test_the_name_tells_jobs_apart() -> None:
    job = read_job(TORCHRUN)
    same = socket_name(read_job({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}), "default")
    assert socket_name(job, "default") == same
    assert len(same) < 100
    others = [socket_name(job, "other")]
    for change in (
        {"MASTER_PORT": "29501"},
        {"MASTER_ADDR": "localhost"},
        {"TORCHELASTIC_RUN_ID": "b"},
        {"TORCHELASTIC_RESTART_COUNT": "3"},
    ):
        others.append(socket_name(read_job({**TORCHRUN, **change}), "default"))
    assert len({same, *others}) == 6


def test_a_frame_goes_through() -> None:
    frame = frames.decode(frames.encode("failed", text="x" * 9000, dead=[1], joined=[], missing=[]))
    assert (frame["kind"], frame["dead"]) == ("failed", [1])
    assert len(frame["text"]) < 5000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(st.binary(max_size=300))
def test_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode(data)


@given(
    st.sampled_from(["hello", "welcome", "link", "failed", "go", "nonsense"]),
    st.dictionaries(
        st.sampled_from(["rank", "world", "pid", "text", "dead", "pids", "job", "version"]), _JSON
    ),
)
def test_any_json_is_a_frame_or_an_error(kind: str, fields: dict[str, object]) -> None:
    try:
        frame = frames.decode(json.dumps({"kind": kind, **fields}).encode())
    except frames.FrameError:
        return
    # What got through is of the closed set, field by field.
    assert frames.decode(frames.encode(**frame)) == frame
