# SPDX-License-Identifier: Apache-2.0
"""GPUs counted without their driver, from a /proc of the tests' own; and CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline import _gpus
from paceline._gpus import Gpu, choose

IDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 0 ", [1, 0]),
        ("0,-1,1", [0]),  # what names none ends the list
        ("0,3,1", [0]),
        ("0,x,1", [0]),
        ("1gpu,2x", [1, 2]),  # read as C reads a number
        ("0,1,0", []),  # one twice: none at all
        ("GPU-c", [2]),
        ("GPU-a", []),  # fits two
        ("GPU-ab,GPU-aa", [1, 0]),
        ("GPU-ab,GPU-ab22", []),
        ("GPU-zz,GPU-aa", []),
        ("MIG-1234", [0]),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices(text: str | None, expected: list[int]) -> None:
    assert choose(text, IDS) == expected


def machine(folder: Path, count: int, excluded: str = "No") -> tuple[str, str]:
    """A driver's folder and devices as an H200 shows them."""
    proc, dev = folder / "proc", folder / "dev" / "nvidia"
    dev.parent.mkdir()
    for at in range(count):
        place = proc / "gpus" / f"0000:{at:02x}:00.0"
        place.mkdir(parents=True)
        (place / "information").write_text(
            f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 18\nGPU UUID: \t GPU-{at}\n"
            f"Bus Location: \t 0000:{at:02x}:00.0\nDevice Minor: \t {at}\n"
            f"GPU Excluded:\t {excluded}\n"
        )
        Path(f"{dev}{at}").touch()
    return str(proc), str(dev)


def test_what_the_driver_shows(tmp_path: Path) -> None:
    proc, dev = machine(tmp_path, 2)
    assert _gpus.installed(proc, dev) == [
        Gpu("NVIDIA H200", "GPU-0", "0000:00:00.0"),
        Gpu("NVIDIA H200", "GPU-1", "0000:01:00.0"),
    ]
    assert _gpus.installed(str(tmp_path / "nothing"), dev) == []


def test_a_gpu_that_a_container_was_not_given_does_not_count(tmp_path: Path) -> None:
    proc, dev = machine(tmp_path, 2)
    Path(f"{dev}0").unlink()
    assert [gpu.uuid for gpu in _gpus.installed(proc, dev)] == ["GPU-1"]
    (tmp_path / "excluded").mkdir()
    assert _gpus.installed(*machine(tmp_path / "excluded", 1, "Yes")) == []


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025", "580.65.06"),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.159  Release Build", "580.159"),
        ("something else", None),
    ],
)
def test_the_drivers_version(tmp_path: Path, line: str, version: str | None) -> None:
    (tmp_path / "version").write_text(f"NVRM version: {line}\nGCC version: gcc 12\n")
    assert _gpus.driver_version(str(tmp_path)) == version


def test_no_driver_has_no_version(tmp_path: Path) -> None:
    assert _gpus.driver_version(str(tmp_path)) is None


def test_a_filter_counts_among_what_is_there() -> None:
    there = [Gpu("a", "GPU-0", ""), Gpu("b", "GPU-1", "")]
    assert _gpus.visible({"CUDA_VISIBLE_DEVICES": "1"}, there) == there[1:]
    assert _gpus.visible({}, there) == there
