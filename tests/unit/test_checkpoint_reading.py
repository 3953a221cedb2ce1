# SPDX-License-Identifier: Apache-2.0
"""Tensors of a checkpoint: read by several threads with their checksums, kept without a copy."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline
from paceline._handed_over import HandedOver
from paceline._tensor import raw_memory
from paceline.checkpoint import disk, reading
from paceline.safetensors_format import Entry, FormatError


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(reading, "_WORTH_IT", 1)
    monkeypatch.setattr(disk, "READ_CHUNK", 1000)  # several pieces of each tensor
    before = paceline.get_num_threads()
    paceline.set_num_threads(request.param)
    yield request.param
    paceline.set_num_threads(before)


def parts_of(sizes: list[int]) -> list[tuple[Entry, memoryview]]:
    parts, at = [], 0
    for number, size in enumerate(sizes):
        entry = Entry(f"t{number}", 1, (size,), at, at + size)
        parts.append((entry, memoryview(bytearray(size))))
        at += size
    return parts


SIZES = [5000, 0, 1, 999, 1000, 1001, 70_000]


def test_every_byte_in_its_place(tmp_path: Path, threads: int) -> None:
    content = os.urandom(sum(SIZES))
    (tmp_path / "f").write_bytes(b"head" + content)
    parts = parts_of(SIZES)
    with (tmp_path / "f").open("rb") as file:
        sums = reading.read_parts(file.fileno(), 4, parts)
    for entry, memory in parts:
        assert bytes(memory) == content[entry.begin : entry.end]
        assert sums[entry.name] == disk.digest(memory)
    assert threading.active_count() == 1


def test_a_file_that_ends_early(tmp_path: Path, threads: int) -> None:
    (tmp_path / "f").write_bytes(bytes(sum(SIZES) - 1))
    with (tmp_path / "f").open("rb") as file, pytest.raises(FormatError, match="ends early"):
        reading.read_parts(file.fileno(), 0, parts_of(SIZES))
    assert threading.active_count() == 1


@pytest.mark.parametrize("error", [OSError(5, "bad sector"), KeyboardInterrupt()])
def test_what_goes_wrong_in_any_thread_is_raised(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "f").write_bytes(bytes(sum(SIZES)))
    real, broken = disk.read_at, 20_000  # lies in one tensor, which one thread reads

    def read_at(fd: int, memory: memoryview, at: int) -> int:
        if at <= broken < at + len(memory):
            raise error
        return real(fd, memory, at)

    monkeypatch.setattr(disk, "read_at", read_at)
    with (tmp_path / "f").open("rb") as file, pytest.raises(type(error)):
        reading.read_parts(file.fileno(), 0, parts_of(SIZES))
    assert threading.active_count() == 1


def test_a_state_that_is_handed_over_is_kept_once() -> None:
    p = paceline.nn.Parameter(paceline.ones(4))
    optimizer = paceline.optim.AdamW([p])
    p.grad = paceline.ones(4)
    optimizer.step()
    state = optimizer.state_dict()
    same = paceline.ones(4)
    values = {"step": 3, "exp_avg": same, "exp_avg_sq": same}
    for given, kept in (({**state}, 0), (HandedOver(state), 1)):
        given["state"] = {0: dict(values)}
        optimizer.load_state_dict(given)
        own = [optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq")]
        assert sum(t._data_ptr == same._data_ptr for t in own) == kept
        assert len({t._data_ptr for t in own}) == 2  # an update of one is none of the other
        assert [t.tolist() for t in own] == [same.tolist()] * 2
        assert raw_memory(own[0]) == raw_memory(own[1])
