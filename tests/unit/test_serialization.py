# SPDX-License-Identifier: Apache-2.0
"""save and load: round trips, exchange with safetensors, and files that lie."""

from __future__ import annotations

import io
import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline import safetensors_format, serialization
from paceline.serialization import FormatError

DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


def _through_memory(obj):
    file = io.BytesIO()
    paceline.save(obj, file)
    file.seek(0)
    return paceline.load(file)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (5, 7)])
def test_every_dtype_and_shape(name: str, shape: tuple[int, ...]) -> None:
    t = (paceline.randn(shape) * 10).to(getattr(paceline, name))
    again = _through_memory({"t": t})["t"]
    assert again.dtype is t.dtype
    assert again.shape == t.shape
    assert again.tolist() == t.tolist()


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    values | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(nested)
def test_any_nesting(obj: object) -> None:
    again = _through_memory(obj)
    assert again == obj
    assert repr(again) == repr(obj)


def test_what_a_checkpoint_holds() -> None:
    model = paceline.nn.Linear(3, 2)
    optimizer = paceline.optim.AdamW(model.parameters())
    model(paceline.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": paceline.get_rng_state(),
        "best": math.inf,
        "worst": math.nan,
        "dtype": paceline.bfloat16,
        "device": paceline.device("cuda:1"),
        "names": OrderedDict(a=1),
    }
    again = _through_memory(state)
    assert again["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert again["optimizer"]["state"][1]["step"].item() == 1
    assert again["best"] == math.inf
    assert math.isnan(again["worst"])
    assert again["dtype"] is paceline.bfloat16
    assert again["device"] == state["device"]
    assert again["names"] == {"a": 1}
    paceline.nn.Linear(3, 2).load_state_dict(again["model"])


def test_parameters_become_tensors() -> None:
    again = _through_memory([paceline.nn.Parameter(paceline.ones(2))])
    assert type(again[0]) is paceline.Tensor
    assert not again[0].requires_grad


def test_shared_tensors_are_written_once_and_stay_shared() -> None:
    t = paceline.randn(1000)
    file = io.BytesIO()
    paceline.save(
        {"a": t, "b": [t, t.detach()], "part": t[:10], "turned": t.view(10, 100).t()}, file
    )
    assert len(file.getvalue()) < 2 * 4000 + 1500
    file.seek(0)
    again = paceline.load(file)
    assert again["b"][0] is again["a"]
    assert again["b"][1] is again["a"]
    assert paceline.equal(again["part"], t[:10])
    assert paceline.equal(again["turned"], t.view(10, 100).t())


def test_names_that_meet() -> None:
    one, two = paceline.ones(1), paceline.zeros(1)
    again = _through_memory({"a": {"b": one}, "a.b": two, "__metadata__": two + 5})
    assert again["a"]["b"].item() == 1
    assert again["a.b"].item() == 0
    assert again["__metadata__"].item() == 5


def test_paths_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    paceline.save({"a": paceline.ones(1)}, path)
    paceline.save({"a": paceline.zeros(1)}, str(path))
    assert paceline.load(path, map_location="cpu", weights_only=True)["a"].item() == 0

    with pytest.raises(TypeError):
        paceline.save({"a": object()}, path)
    assert paceline.load(path)["a"].item() == 0
    assert os.listdir(tmp_path) == ["model.pth"]
    with pytest.raises(FileNotFoundError):
        paceline.save({}, tmp_path / "nowhere" / "x")


class _Broken(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        raise OSError(28, "no space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.bin"
    paceline.save([1], path)
    monkeypatch.setattr("paceline._replacing.open", lambda *_: _Broken(), raising=False)
    with pytest.raises(OSError, match="no space"):
        paceline.save([2], path)
    monkeypatch.undo()
    assert paceline.load(path) == [1]
    assert os.listdir(tmp_path) == ["x.bin"]


class Thing:
    pass


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"a": [1, {"b": Thing()}]}, r"obj\['a'\]\[1\]\['b'\]: got .*Thing"),
        ({Thing(): 1}, "Thing"),
        (paceline.nn.Linear(1, 1), r"save obj.state_dict\(\) instead"),
        ([np.ones(1)], r"obj\[0\].*as_tensor"),
        ({1, 2}, "builtins.set"),
        (lambda: 1, "function"),
        ({paceline.ones(1): 1}, "tensor as a key"),
        (1j, "complex"),
    ],
)
def test_what_cannot_be_saved_is_named(obj: object, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        paceline.save(obj, io.BytesIO())


def test_a_cycle_is_found() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="cycle"):
        paceline.save(loop, io.BytesIO())


# -- exchange with safetensors ----------------------------------------------------------------


def test_others_read_ours(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    model = paceline.nn.Linear(3, 2)
    state = model.state_dict() | {"flags": paceline.tensor([True, False])}
    paceline.save(state, tmp_path / "m.safetensors")
    theirs = safetensors.load_file(tmp_path / "m.safetensors")
    assert sorted(theirs) == sorted(state)
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, state[name].numpy())


def test_bfloat16_as_pytorch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    t = paceline.randn(9).bfloat16()
    paceline.save({"t": t, "odd": paceline.ones(3, dtype=paceline.uint8)}, tmp_path / "m")
    theirs = safetensors.load_file(tmp_path / "m")["t"]
    assert theirs.dtype is torch.bfloat16
    assert theirs.tolist() == t.tolist()


def test_we_read_others(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": np.array([1], np.uint8), "z": np.zeros(())}
    safetensors.save_file(arrays, tmp_path / "m", metadata={"format": "np"})
    again = paceline.load(tmp_path / "m")
    assert sorted(again) == ["x", "y", "z"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name].numpy(), array)


# -- files that lie ---------------------------------------------------------------------------


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def _nested(obj: object, tensors=None, version: object = 1) -> bytes:
    text = json.dumps({"version": version, "obj": obj})
    return _file({"__metadata__": {"paceline": text}, **(tensors or {})})


EIGHT = b"\0" * 8
LIES = {
    "empty": (b"", "too short"),
    "short": (b"\1\2\3", "too short"),
    "archive": (b"PK\3\4" + b"\0" * 40, "archive is damaged"),
    "old pickle": (b"\x80\2" + b"\0" * 40, "pickle"),
    "length too large": (_file({}, length=2**40), "header: got a length"),
    "length past the end": (_file({}, length=99), "ends early"),
    "no JSON": (_file(b"{x}"), "not JSON"),
    "no UTF-8": (_file(b'{"\xff": 1}'), "not JSON"),
    "deep JSON": (_file(b"[" * 100_000), "not JSON"),
    "not an object": (_file([1]), "expected an object"),
    "duplicate name": (_file(b'{"a": 1, "a": 2}'), "twice"),
    "metadata no texts": (_file({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (_file({"__metadata__": []}), "__metadata__"),
    "entry no object": (_file({"a": 3}), "expected dtype"),
    "entry with more": (_file({"a": _tensor(more=1)}, EIGHT), "expected dtype"),
    "unknown dtype": (_file({"a": _tensor("F8")}, EIGHT), "dtype"),
    "dtype a number": (_file({"a": _tensor(3)}, EIGHT), "dtype"),
    "negative size": (_file({"a": _tensor(shape=[-2])}, EIGHT), "shape"),
    "size a float": (_file({"a": _tensor(shape=[2.0])}, EIGHT), "shape"),
    "size true": (_file({"a": _tensor(shape=[True, 2])}, EIGHT), "shape"),
    "nine dimensions": (_file({"a": _tensor(shape=[1] * 8 + [2])}, EIGHT), "shape"),
    "size overflows": (_file({"a": _tensor(shape=[2**40, 2**40])}, EIGHT), "bytes of data"),
    "zero hides overflow": (_file({"a": _tensor(shape=[2**62, 2**62, 0])}, EIGHT), "bytes"),
    "offsets three": (_file({"a": _tensor(offsets=[0, 4, 8])}, EIGHT), "data_offsets"),
    "offsets negative": (_file({"a": _tensor(offsets=[-8, 0])}, EIGHT), "data_offsets"),
    "offsets backwards": (_file({"a": _tensor(offsets=[8, 0])}, EIGHT), "bytes of data"),
    "size and offsets differ": (_file({"a": _tensor(offsets=[0, 4])}, EIGHT), "bytes of data"),
    "hole at the start": (_file({"a": _tensor(offsets=[4, 12])}, EIGHT * 2), "hole"),
    "overlap": (
        _file({"a": _tensor(), "b": _tensor(offsets=[4, 12])}, EIGHT * 2),
        "overlaps",
    ),
    "hole between": (
        _file({"a": _tensor(), "b": _tensor(offsets=[12, 20])}, EIGHT * 3),
        "hole",
    ),
    "data ends early": (_file({"a": _tensor()}, EIGHT[:5]), "ends early"),
    "trailing bytes": (_file({"a": _tensor()}, EIGHT + b"x"), "after its tensors"),
    "trailing bytes alone": (_file({}, b"x"), "after its tensors"),
    "claims the moon": (_file({"a": _tensor(shape=[2**50], offsets=[0, 2**52])}), "ends early"),
    "bool of two": (_file({"a": _tensor("BOOL", [2], [0, 2])}, b"\1\2"), "0 or 1"),
    "nesting no JSON": (_file({"__metadata__": {"paceline": "{"}}), "not JSON"),
    "nesting no object": (_file({"__metadata__": {"paceline": "[]"}}), "version and obj"),
    "nesting newer": (_nested(1, version=2), "newer"),
    "nesting unknown kind": (_nested({"call": "os.system"}), "call"),
    "nesting dunder": (_nested({"_items__": 1}), "got '_items__'"),
    "nesting two keys": (_nested({"list": [], "tuple": []}), "one key"),
    "nesting bare list": (_nested([1]), "one key"),
    "nesting missing tensor": (_nested({"tensor": "a"}), "not there"),
    "nesting tensor a list": (_nested({"tensor": []}), "not there"),
    "nesting dict no pairs": (_nested({"dict": [[1]]}), "pairs"),
    "nesting dict no list": (_nested({"dict": {}}), "expected a list"),
    "nesting key twice": (_nested({"dict": [["a", 1], ["a", 2]]}), "twice"),
    "nesting key a list": (_nested({"dict": [[{"list": []}, 1]]}), "cannot be a key"),
    "nesting float": (_nested({"float": "1e5"}), "float"),
    "nesting bytes": (_nested({"bytes": "?"}), "bytes"),
    "nesting bytes a number": (_nested({"bytes": 3}), "bytes"),
    "nesting dtype": (_nested({"dtype": "object"}), "dtype"),
    "nesting device": (_nested({"device": "moon"}), "device"),
    "nesting device a list": (_nested({"device": []}), "nesting"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    content, text = LIES[name]
    with pytest.raises(FormatError, match=text):
        paceline.load(io.BytesIO(content))
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=text):
        paceline.load(path)


def test_deep_nesting_is_refused() -> None:
    node: object = 1
    text = '{"list":[' * 5000 + "1" + "]}" * 5000
    node = '{"version": 1, "obj": ' + text + "}"
    with pytest.raises(FormatError):
        paceline.load(io.BytesIO(_file({"__metadata__": {"paceline": node}})))


@given(st.data())
def test_flipped_bytes_never_do_worse_than_refuse(data) -> None:
    file = io.BytesIO()
    paceline.save({"a": paceline.arange(4), "b": [1, 2.5, None]}, file)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        paceline.load(io.BytesIO(bytes(content)))
    except FormatError:
        pass


def _loaded(obj: Any, where: Any, devices: str | None = None) -> Any:
    """What is loaded of an object that was saved, perhaps with another note of devices."""
    file = io.BytesIO()
    tensors, metadata = serialization.take_apart(obj)
    if devices is not None:
        metadata["paceline.devices"] = devices
    safetensors_format.write(file, tensors, metadata)
    file.seek(0)
    return paceline.load(file, map_location=where)


def test_map_location() -> None:
    t = paceline.arange(3)
    asked: list[tuple[list[int], str]] = []

    def note(storage: Any, location: str) -> Any:
        asked.append((storage.tolist(), location))
        return None if location == "cpu" else storage.cpu()

    note_of_gpu = '{"cuda:1": ["b"]}'
    for where in (None, "cpu", paceline.device("cpu"), {"cuda:1": "cpu"}, note):
        got = _loaded({"a": t, "b": t + 1, "c": t}, where, note_of_gpu)
        assert [got[key].tolist() for key in "abc"] == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
        assert got["a"] is got["c"]  # what was one is one
    assert asked == [([0, 1, 2], "cpu"), ([1, 2, 3], "cuda:1")]


def test_map_location_is_refused_where_it_makes_no_sense() -> None:
    t = paceline.arange(3)
    with pytest.raises(paceline.errors.DeviceError, match=r"\[load\]"):
        _loaded([1], "cuda")
    with pytest.raises(paceline.errors.DeviceError, match=r"\[load\]"):
        _loaded({"b": t}, {"cuda:1": "cuda:0"}, '{"cuda:1": ["b"]}')
    with pytest.raises(TypeError, match=r"map_location: got int, expected None, a device"):
        _loaded([1], 1)
    for wrong in (lambda storage, where: 1, lambda storage, where: storage[:1]):
        with pytest.raises(TypeError, match="the function gave .* expected the storage"):
            _loaded({"b": t}, wrong)
    for damaged in ("[", "[1]", '{"gpu": ["b"]}', '{"cuda": 1}'):
        with pytest.raises(FormatError, match="paceline.devices"):
            _loaded({"b": t}, None, damaged)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}})
    for length in (0x80, 0x0280, 0x4B50):  # the first bytes of pickles, and of an archive
        path = tmp_path / str(length)
        path.write_bytes(length.to_bytes(8, "little") + text.ljust(length).encode() + b"\1\2\3")
        assert paceline.load(path)["a"].tolist() == [1, 2, 3]
