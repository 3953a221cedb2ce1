# SPDX-License-Identifier: Apache-2.0
"""Pickles that are not trusted: what they may build, what is refused, and parity with PyTorch."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline.checkpoint.pickles import read_pickle
from paceline.serialization import FormatError


def _read(data: bytes) -> Any:
    return paceline.load(io.BytesIO(data))


# --- plain containers -------------------------------------------------------------------------

keys = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
values = keys | st.binary(max_size=20) | st.complex_numbers(allow_nan=False)
plain = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.binary(max_size=9).map(bytearray)
    ),
    max_leaves=25,
)


@given(plain, st.integers(2, 5))
def test_plain_containers_come_back_from_every_protocol(obj: object, protocol: int) -> None:
    again = _read(pickle.dumps(obj, protocol=protocol))
    assert again == obj
    assert type(again) is type(obj)


def test_containers_with_names() -> None:
    obj = [Counter("aab"), defaultdict(list, {"a": [1]}), OrderedDict(x=1)]
    again = _read(pickle.dumps(obj))
    assert again == obj
    assert [type(one) for one in again] == [Counter, defaultdict, OrderedDict]
    assert again[1]["new"] == []


def test_what_is_shared_stays_shared() -> None:
    part = [1]
    loop: list[Any] = [part, part]
    loop.append(loop)
    again = _read(pickle.dumps(loop))
    assert again[0] is again[1]
    assert again[2] is again


def test_numpy_arrays_of_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    obj = {
        "a": numpy.arange(6, dtype="uint32").reshape(2, 3),
        "f": numpy.asfortranarray(numpy.ones((2, 3))),
        "s": numpy.float64(2.5),
        "b": numpy.array([True, False]),
    }
    for protocol in (2, 4):
        again = _read(pickle.dumps(obj, protocol=protocol))
        assert again["s"] == 2.5
        for name in ("a", "f", "b"):
            assert again[name].dtype == obj[name].dtype
            assert (again[name] == obj[name]).all()
    for bad in (numpy.array(["x"]), numpy.array([object()]), numpy.dtype("O")):
        with pytest.raises(FormatError):
            _read(pickle.dumps(bad))


# --- what is refused --------------------------------------------------------------------------


class Evil:
    """Asks for a call when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "posix.system": Evil(os.system, "touch TOUCHED"),
    "builtins.eval": Evil(eval, "open('TOUCHED', 'w')"),
    "builtins.exec": Evil(exec, "open('TOUCHED', 'w')"),
    "builtins.getattr": Evil(getattr, "", "join"),
    "builtins.open": Evil(open, "TOUCHED", "w"),
    "builtins.__import__": Evil(__import__, "this"),
    "operator.attrgetter": Evil(__import__("operator").attrgetter, "system"),
    "functools.partial": Evil(__import__("functools").partial, print),
    "subprocess.Popen": Evil(__import__("subprocess").Popen, ["touch", "TOUCHED"]),
    "pathlib.PosixPath": Path("/etc"),
    "collections.deque": collections.deque([1]),
    "builtins.print": print,
    "builtins.dict": Evil(dict, [(1, 2)]),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_globals_are_refused_by_name(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"deep": [ATTACKS[name]]}, protocol=protocol)
    # Pickle gives some modules their older or inner names: io.open, commands.Popen.
    with pytest.raises(FormatError, match=rf"asks for [a-z_.]*\.{name.rpartition('.')[2]}, which"):
        _read(data)
    assert os.listdir(tmp_path) == []


GLOBAL = b"\x80\x02ccollections\nOrderedDict\n"
RAW = {
    "sets attributes of a class": GLOBAL + b"}X\x06\x00\x00\x00updateK\x01s\x86b.",
    "a state for a global": GLOBAL + b"}b.",
    "calls what is no global": b"\x80\x02K\x01)R.",
    "calls a text": b"\x80\x02X\x01\x00\x00\x00x)R.",
    "arguments that are none": GLOBAL + b"K\x01R.",
    "too many arguments": GLOBAL + b"K\x01K\x02K\x03\x87R.",
    "appends to a number": b"\x80\x02K\x01K\x02a.",
    "appends to a tuple": b"\x80\x02)K\x02a.",
    "fills a list by key": b"\x80\x02]K\x01K\x02s.",
    "adds to a list": b"\x80\x04](K\x01\x90.",
    "odd items": b"\x80\x02}(K\x01u.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "deep key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "memo that is not there": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02.",
    "pops below a mark": b"\x80\x02K\x01(\x85.",
    "two values": b"\x80\x02K\x01K\x02.",
    "a mark left": b"\x80\x02K\x01(.",
    "no end": b"\x80\x02K\x01",
    "empty": b"\x80",
    "protocol 6": b"\x80\x06K\x01.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"\x80\x02(iposix\nsystem\n.",
    "object": b"\x80\x02(cposix\nsystem\no.",
    "persistent text": b"\x80\x02Pabc\n.",
    "persistent": b"\x80\x02K\x01Q.",
    "newobj with keywords": b"\x80\x04" + GLOBAL[2:] + b")}\x92.",
    "out of band": b"\x80\x05\x97.",
    "size lie, text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "size lie, bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "size lie, bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "size lie, number": b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"x.",
    "unknown operation": b"\x80\x02\xff.",
    "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "factory": b"\x80\x02ccollections\ndefaultdict\ncposix\nsystem\n\x85R.",
    "a bare global": b"\x80\x02cposix\nsystem\n.",
    "utf-8 that is none": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00hex\x86R.",
}


@pytest.mark.parametrize("name", RAW)
def test_damaged_and_hostile_pickles_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        _read(RAW[name])


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer_or_a_format_error(data: bytes) -> None:
    try:
        read_pickle(io.BytesIO(b"\x80\x04" + data), {})
    except FormatError:
        pass


def test_a_table_of_one_s_own() -> None:
    data = b"\x80\x02cmine\nthing\nK\x07\x85R."
    assert read_pickle(io.BytesIO(data), {"mine.thing": lambda n: n + 1}) == 8


# --- archives ---------------------------------------------------------------------------------

TENSOR = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n%sStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ%s(%st(%st\x89Ntq\x00R."
)


def _int(n: int) -> bytes:
    return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)


def _pickled(
    kind: bytes = b"Float",
    n: int = 4,
    offset: int = 0,
    size: tuple[int, ...] = (2, 2),
    stride: tuple[int, ...] = (2, 1),
) -> bytes:
    parts = [b"".join(map(_int, values)) for values in (size, stride)]
    return TENSOR % (kind, _int(n), _int(offset), *parts)


def _archive(
    data: bytes, storage: bytes = bytes(16), compress: int = zipfile.ZIP_STORED, **more: bytes
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def test_an_archive_made_by_hand() -> None:
    found = _read(_archive(_pickled(), struct.pack("<4f", 1, 2, 3, 4)))
    assert found.tolist() == [[1, 2], [3, 4]]
    columns = _read(_archive(_pickled(stride=(1, 2)), struct.pack("<4f", 1, 2, 3, 4)))
    assert columns.tolist() == [[1, 3], [2, 4]]
    apart = _read(_archive(_pickled(size=(2,), stride=(3,)), struct.pack("<4f", 1, 2, 3, 4)))
    assert apart.tolist() == [1, 4]


LIES = {
    "beyond the storage": (_archive(_pickled(size=(3, 2))), "last element is number 5"),
    "offset beyond": (_archive(_pickled(offset=1)), "last element"),
    "negative offset": (_archive(_pickled(offset=-1)), "tensor: got size"),
    "negative size": (_archive(_pickled(size=(-2, 2))), "description is not one"),
    "negative stride": (_archive(_pickled(stride=(-2, 1))), "description is not one"),
    "huge size": (_archive(_pickled(size=(2**60 - 1, 2**60 - 1))), "last element"),
    "huge repeat": (_archive(_pickled(size=(2**40, 2), stride=(0, 1))), "too often"),
    "ranks differ": (_archive(_pickled(stride=(1,))), "size"),
    "storage too short": (_archive(_pickled(), bytes(12)), "got 12 bytes, expected 16"),
    "storage too long": (_archive(_pickled(), bytes(20)), "got 20 bytes"),
    "storage of 2^60": (_archive(_pickled(n=2**59)), "got 16 bytes"),
    "negative storage": (_archive(_pickled(n=-1)), "-1 elements"),
    "unknown dtype": (_archive(_pickled(b"Char")), "torch.CharStorage"),
    "bool of 7": (_archive(_pickled(b"Bool"), b"\1\0\7\1"), "must be 0 or 1"),
    "compressed": (_archive(_pickled(), compress=zipfile.ZIP_DEFLATED), "compressed"),
    "big endian": (_archive(_pickled(), byteorder=b"big"), "byte order"),
    "program": (_archive(_pickled(), **{"constants.pkl": b"x"}), "TorchScript"),
    "evil": (_archive(pickle.dumps(Evil(os.system, "true"), 2)), "posix.system"),
    "no record": (_archive(_pickled()).replace(b"data/0", b"data/1"), "no record"),
    "no pickle": (_archive(_pickled()).replace(b"data.pkl", b"data.pkx"), "no data.pkl"),
    "cut": (_archive(_pickled())[:-9], "archive is damaged"),
    "in front": (b"PK\x03\x04 something" + _archive(_pickled()), ""),
}


@pytest.mark.parametrize("name", LIES)
def test_lying_archives_are_refused(name: str) -> None:
    data, text = LIES[name]
    with pytest.raises(FormatError) as caught:
        _read(data)
    assert text in str(caught.value)


def test_a_name_twice_or_a_flipped_bit_is_refused() -> None:
    file = io.BytesIO(_archive(_pickled()))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    with pytest.raises(FormatError, match="twice"):
        _read(file.getvalue())
    data = bytearray(_archive(_pickled(), struct.pack("<4f", 1, 2, 3, 4)))
    data[data.index(struct.pack("<f", 3)) + 1] ^= 1
    with pytest.raises(FormatError, match="damaged"):
        _read(bytes(data))


# --- parity -----------------------------------------------------------------------------------


def _same(torch: Any, theirs: Any, ours: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert tuple(ours.shape) == tuple(theirs.shape)
        assert ours.dtype.name == str(theirs.dtype).rpartition(".")[2]
        assert ours.tolist() == theirs.tolist()
        assert ours.requires_grad == theirs.requires_grad
        parameter = isinstance(theirs, torch.nn.Parameter)
        assert isinstance(ours, paceline.nn.Parameter) == parameter
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            _same(torch, value, ours[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(theirs, ours, strict=True):
            _same(torch, one, other)
    elif isinstance(theirs, torch.device):
        assert str(ours) == str(theirs)
    elif isinstance(theirs, torch.dtype):
        assert ours is getattr(paceline, str(theirs).rpartition(".")[2])
    else:
        assert ours == theirs


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_parity_with_torch_load(zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    kinds = "bool uint8 int32 int64 float16 bfloat16 float32 float64".split()
    obj = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]).state_dict(),
        "kinds": {kind: torch.ones(3).to(getattr(torch, kind)) for kind in kinds},
        "views": [base, base[1:3], base[:, 1:3], base.t(), base[:, ::2], base[2, 3]],
        "spread": torch.ones(1, 3).expand(4, 3),
        "turned": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        "empty": [torch.zeros(0, 3), torch.zeros(())],
        "leaf": torch.ones(2, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "bytes": b"\x00\xff",
        "numbers": [1, 2.5, None, True, 10**30, float("inf")],
    }
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    theirs = torch.load(file, weights_only=True)
    file.seek(0)
    ours = paceline.load(file)
    _same(torch, theirs, ours)
    views = ours["views"]
    views[0][1, 0] = -1.0
    assert views[1][0, 0].item() == -1.0, "views of one storage share memory"
    assert views[3][0, 1].item() == -1.0


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_whole_models_and_programs_are_refused(zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    with pytest.raises(FormatError, match=r"torch.nn.modules.linear.Linear.*refused"):
        paceline.load(file)


def test_old_files_that_lie_are_refused() -> None:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save([torch.arange(5.0)], file, _use_new_zipfile_serialization=False)
    good = file.getvalue()
    for data in (good[:-1], good + b"x", good[:-28] + b"\xff" * 8 + good[-20:], good[:200]):
        with pytest.raises(FormatError):
            _read(data)
