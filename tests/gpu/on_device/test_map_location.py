# SPDX-License-Identifier: Apache-2.0
"""Where loaded tensors go, from files of `paceline.save` and of `torch.save`."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

import paceline


def kinds(obj: dict[str, Any]) -> list[str]:
    return [t.device.type for t in obj.values()]


def saved(obj: Any) -> io.BytesIO:
    file = io.BytesIO()
    paceline.save(obj, file)
    return file


def loaded(file: io.BytesIO, where: Any = None) -> Any:
    file.seek(0)
    return paceline.load(file, map_location=where)


def to_gpu(storage: Any, location: str) -> Any:
    return storage.cuda()


PLACES = [
    (None, ["cuda", "cpu"]),
    ("cpu", ["cpu", "cpu"]),
    ("cuda", ["cuda", "cuda"]),
    (paceline.device("cuda:0"), ["cuda", "cuda"]),
    ({"cuda:0": "cpu"}, ["cpu", "cpu"]),
    ({"cpu": "cuda:0"}, ["cuda", "cuda"]),
    ({"cuda:0": "cpu", "cpu": "cuda"}, ["cpu", "cuda"]),
    ({"cuda:5": "cpu"}, ["cuda", "cpu"]),
    (lambda storage, location: storage, ["cpu", "cpu"]),
    (lambda storage, location: None, ["cuda", "cpu"]),
    (to_gpu, ["cuda", "cuda"]),
]


@pytest.mark.parametrize(("where", "expected"), PLACES)
def test_own_files(where: Any, expected: list[str]) -> None:
    x = paceline.arange(6.0).reshape(2, 3)
    file = saved({"on_gpu": x.to("cuda"), "on_cpu": x})
    got = loaded(file, where)
    assert kinds(got) == expected
    assert all(t.tolist() == x.tolist() for t in got.values())


def test_what_is_shared_stays_shared() -> None:
    x = paceline.arange(6.0, device="cuda")
    got = loaded(saved({"a": x, "b": [x]}))
    assert got["a"] is got["b"][0]
    assert got["a"].is_cuda


def test_a_file_without_gpu_tensors_says_nothing_of_devices() -> None:
    assert b"paceline.devices" not in saved({"a": paceline.ones(2)}).getvalue()
    file = saved({"a": paceline.ones(2, device="cuda")})
    assert b"paceline.devices" in file.getvalue()


@pytest.fixture(scope="module")
def of_torch() -> io.BytesIO:
    """What torch.save writes of a GPU's tensors."""
    torch = pytest.importorskip("torch")
    x = torch.arange(12.0).reshape(3, 4)
    plain, made = io.BytesIO(), io.BytesIO()
    y = torch.arange(2.0).to(torch.float64)
    torch.save({"all": x, "part": x[1:], "apart": x[:, ::2], "doubles": y}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("/data.pkl"):
                # The location is written once: the other storages refer to it.
                content = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:3", 1)
            new.writestr(info.filename, content)
    return made


@pytest.mark.parametrize(
    ("where", "expected"), [(None, "cuda"), ("cpu", "cpu"), ({"cuda:3": "cpu"}, "cpu")]
)
def test_files_of_torch(of_torch: io.BytesIO, where: Any, expected: str) -> None:
    got = loaded(of_torch, where)
    assert kinds(got) == [expected] * 4
    assert got["part"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert got["apart"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert got["part"].data_ptr() == got["all"].data_ptr() + 16  # one storage, moved once
    assert got["doubles"].tolist() == [0, 1]
