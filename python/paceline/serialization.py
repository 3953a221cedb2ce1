# SPDX-License-Identifier: Apache-2.0
"""save and load: tensors and what holds them, without pickle.

A file is safetensors. The nesting of dictionaries, lists, numbers and texts around the tensors
stands as JSON in its metadata, under ``paceline``, and where tensors were that were not on the
CPU under ``paceline.devices``; a plain dictionary of tensors can be read by
every other reader of safetensors, and theirs can be read here. What ``torch.save`` wrote is read
by ``checkpoint/torch_file.py``, which runs nothing of it.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any

from paceline import _C, _device, _map_location
from paceline._replacing import replacing
from paceline.dtypes import BY_NAME, dtype
from paceline.safetensors_format import FormatError, is_pickle, read, write

if TYPE_CHECKING:
    from paceline._tensor import Tensor

__all__ = ["FormatError", "load", "put_together", "save", "take_apart"]

_KEY = "paceline"
_DEVICES = "paceline.devices"  # {"cuda:0": [names]}; those on the CPU are not told
_VERSION = 1
_DEPTH = 200

File = str | os.PathLike[str] | IO[bytes]


# -- nesting to JSON --------------------------------------------------------------------------
# None, bool, int, str and finite float stand for themselves; everything else is an object with
# one key that says what it is.


class _Packer:
    """Takes an object apart: tensors by name, the rest as JSON."""

    def __init__(self, to_core: Callable[[Any], Any] | None) -> None:
        self.tensors: dict[str, _C.Tensor] = {}
        self._to_core = to_core
        self._seen: dict[tuple[Any, ...], str] = {}

    def pack(self, obj: Any, path: str, depth: int = 0) -> Any:
        """The JSON that stands for `obj`; `path` is how a reader of the code would reach it."""
        if depth > _DEPTH:
            raise ValueError(f"[save] {path} lies more than {_DEPTH} levels deep (a cycle?)")
        if obj is None or isinstance(obj, (bool, str)) or type(obj) is int:
            return obj
        tensor = obj if isinstance(obj, _C.Tensor) else None
        if tensor is None and self._to_core is not None:
            tensor = self._to_core(obj)
        if tensor is not None:
            return {"tensor": self._name(tensor, path)}
        if type(obj) is float:
            return obj if math.isfinite(obj) else {"float": repr(obj)}
        if type(obj) is dict or type(obj) is OrderedDict:
            return {"dict": [self._pair(k, v, path, depth) for k, v in obj.items()]}
        if type(obj) is list or type(obj) is tuple:
            items = [self.pack(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(obj)]
            return {type(obj).__name__: items}
        if type(obj) is bytes:
            return {"bytes": base64.b64encode(obj).decode()}
        if isinstance(obj, dtype):
            return {"dtype": obj.name}
        if isinstance(obj, _device.device):
            return {"device": str(obj)}
        return self._pack_rarer(obj, path, depth)

    def _pack_rarer(self, obj: Any, path: str, depth: int) -> Any:
        # What state dicts of schedulers and metrics hold besides the plain containers.
        if self._to_core is None:
            raise TypeError(_refusal(obj, path))
        if type(obj) is complex:
            return {"complex": [self.pack(part, path, depth) for part in (obj.real, obj.imag)]}
        if type(obj) is Counter:
            return {"counter": [self._pair(k, v, path, depth) for k, v in obj.items()]}
        if type(obj) is set:
            return {"set": [self.pack(v, f"{path} item", depth + 1) for v in obj]}
        if hasattr(obj, "__array__") and type(obj).__module__.partition(".")[0] == "numpy":
            if obj.dtype.kind in "biufc":
                if obj.ndim == 0:
                    return self.pack(obj.item(), path, depth + 1)
                content = base64.b64encode(obj.tobytes()).decode()
                return {"ndarray": [obj.dtype.str, list(obj.shape), content]}
        raise TypeError(_refusal(obj, path))

    def _pair(self, key: Any, value: Any, path: str, depth: int) -> list[Any]:
        place = f"{path}[{key!r}]"
        if isinstance(key, _C.Tensor):
            raise TypeError(f"[save] {path} has a tensor as a key: expected texts or numbers")
        return [self.pack(key, f"key {place}", depth + 1), self.pack(value, place, depth + 1)]

    def _name(self, t: _C.Tensor, path: str) -> str:
        # What looks at the same elements in the same way is saved once.
        view = (t._device_index, t._data_ptr, t._dtype, tuple(t.shape), t._strides)
        if t._numel() and view in self._seen:
            return self._seen[view]
        name = _plain_name(path)
        while name in self.tensors or name == "__metadata__":
            name += "_"
        self.tensors[name] = t
        self._seen[view] = name
        return name


def _plain_name(path: str) -> str:
    # obj['model']['layer.weight'][0] -> model.layer.weight.0
    return path.removeprefix("obj").replace("']['", ".").replace("][", ".").strip("[]'") or "tensor"


def _refusal(obj: Any, path: str) -> str:
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    if hasattr(obj, "state_dict"):
        return f"[save] {path}: got {kind}, expected data; save {path}.state_dict() instead"
    if hasattr(obj, "__array__"):
        return f"[save] {path}: got {kind}, expected a tensor; use paceline.as_tensor"
    return (
        f"[save] {path}: got {kind}, expected tensors, numbers, texts, bytes, None, and lists, "
        "tuples and dicts of them (objects of other classes would need pickle)"
    )


class _Unpacker:
    """Puts an object together again; the JSON is not trusted."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def unpack(self, node: Any) -> Any:
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if not isinstance(node, dict) or len(node) != 1:
            raise FormatError("[load] nesting: expected a value or an object of one key")
        ((kind, value),) = node.items()
        make = getattr(self, f"_make_{kind}", None)
        if make is None:
            raise FormatError(f"[load] nesting: got {kind!r}, expected the like of 'dict'")
        return make(value)

    def _items(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise FormatError(f"[load] nesting: got {type(value).__name__}, expected a list")
        return value

    def _make_tensor(self, value: Any) -> Tensor:
        if not isinstance(value, str) or value not in self._tensors:
            raise FormatError(f"[load] nesting names a tensor that is not there: {value!r}")
        return self._tensors[value]

    def _make_dict(self, value: Any) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for pair in self._items(value):
            if not isinstance(pair, list) or len(pair) != 2:
                raise FormatError("[load] nesting: expected pairs in a dict")
            key = self.unpack(pair[0])
            try:
                twice = key in out
            except TypeError as error:
                raise FormatError(f"[load] nesting: {key!r} cannot be a key") from error
            if twice:
                raise FormatError(f"[load] nesting: the key {key!r} occurs twice")
            out[key] = self.unpack(pair[1])
        return out

    def _make_counter(self, value: Any) -> Counter[Any]:
        return Counter(self._make_dict(value))

    def _make_set(self, value: Any) -> set[Any]:
        try:
            return {self.unpack(v) for v in self._items(value)}
        except TypeError as error:
            raise FormatError(f"[load] nesting: set: {error}") from error

    def _make_complex(self, value: Any) -> complex:
        parts = [self.unpack(v) for v in self._items(value)]
        if len(parts) != 2 or not all(isinstance(part, (int, float)) for part in parts):
            raise FormatError("[load] nesting: complex: expected two numbers")
        return complex(*parts)

    def _make_ndarray(self, value: Any) -> Any:
        import numpy

        parts = self._items(value)
        try:
            kind, shape, content = parts
            if not isinstance(kind, str) or kind[1:2] not in tuple("biufc"):
                raise ValueError(f"dtype {kind!r}")
            flat = numpy.frombuffer(bytearray(self._make_bytes(content)), numpy.dtype(kind))
            return flat.reshape(shape)
        except (TypeError, ValueError) as error:
            raise FormatError(f"[load] nesting: ndarray: {error}") from error

    def _make_list(self, value: Any) -> list[Any]:
        return [self.unpack(v) for v in self._items(value)]

    def _make_tuple(self, value: Any) -> tuple[Any, ...]:
        return tuple(self.unpack(v) for v in self._items(value))

    def _make_float(self, value: Any) -> float:
        if value not in ("inf", "-inf", "nan"):
            raise FormatError(f"[load] nesting: float: got {value!r}, expected inf, -inf or nan")
        return float(value)

    def _make_bytes(self, value: Any) -> bytes:
        try:
            return base64.b64decode(value, validate=True)
        except (TypeError, ValueError) as error:
            raise FormatError(f"[load] nesting: bytes: {error}") from error

    def _make_dtype(self, value: Any) -> dtype:
        if not isinstance(value, str) or value not in BY_NAME:
            raise FormatError(f"[load] nesting: dtype: got {value!r}")
        return BY_NAME[value]

    def _make_device(self, value: Any) -> _device.device:
        try:
            return _device.device(value)
        except (RuntimeError, TypeError) as error:
            raise FormatError(f"[load] nesting: {error}") from error


def take_apart(
    obj: Any, to_core: Callable[[Any], Any] | None = None
) -> tuple[dict[str, _C.Tensor], dict[str, str]]:
    """Take an object apart into what a safetensors file holds.

    Parameters
    ----------
    obj : object
        As for `save`.
    to_core : callable, optional
        Gives the core's tensor over another library's, None for anything that is no tensor. With
        it, what state dicts of others hold is taken too: sets, counters, complex numbers and
        NumPy's arrays.

    Returns
    -------
    tuple
        Tensors by name, and the file's metadata.
    """
    packer = _Packer(to_core)
    nesting = packer.pack(obj, "obj")
    text = json.dumps({"version": _VERSION, "obj": nesting}, separators=(",", ":"))
    return packer.tensors, {"format": "pt", _KEY: text}


def put_together(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Any:
    """Give the object again; a dictionary of all tensors where no nesting was written.

    Raises
    ------
    FormatError
        If the metadata is not what `take_apart` made.
    """
    if _KEY not in metadata:
        return tensors
    try:
        told = json.loads(metadata[_KEY])
        if not isinstance(told, dict) or "obj" not in told:
            raise FormatError("[load] nesting: expected an object with version and obj")
        if told.get("version") != _VERSION:
            raise FormatError(
                f"[load] version: got {told.get('version')!r}, expected {_VERSION}; "
                "a newer paceline wrote this file"
            )
        return _Unpacker(tensors).unpack(told["obj"])
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"[load] nesting is not JSON: {error}") from error


# -- files ------------------------------------------------------------------------------------


def save(obj: Any, f: File) -> None:
    """Write an object to a file.

    Parameters
    ----------
    obj : object
        Tensors, numbers, texts, bytes, None, dtypes, devices, and lists, tuples and dictionaries
        of them, in any nesting. Tensors that share their memory whole are written once.
    f : str, path or binary file
        Where to. A path is written beside, flushed to the disk and renamed, so that there is the
        old file or the new one, never half of one. Its ending decides nothing.

    Raises
    ------
    TypeError
        For an object of another class; the message says where in `obj` it is.

    Examples
    --------
    >>> import io, paceline
    >>> file = io.BytesIO()
    >>> save({"weight": paceline.ones(2), "step": 7}, file)
    >>> _ = file.seek(0)
    >>> load(file)
    {'weight': tensor([1., 1.]), 'step': 7}
    """
    tensors, metadata = take_apart(obj)
    devices: dict[str, list[str]] = {}
    for name, t in tensors.items():
        if t._device_index >= 0:
            devices.setdefault(str(_device.named(t._device_index)), []).append(name)
    if devices:
        metadata[_DEVICES] = json.dumps(devices, separators=(",", ":"))
    if isinstance(f, (str, os.PathLike)):
        write_beside(os.fspath(f), tensors, metadata)
    else:
        write(f, tensors, metadata)


def write_beside(path: str, tensors: Mapping[str, _C.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, flushed to the disk: there is the old one or the new one."""
    with replacing(path, "wb", flush=True) as file:
        write(file, tensors, metadata)


def _end_of(file: IO[bytes]) -> int | None:
    # Where a file ends, if it can tell.
    if not file.seekable():
        return None
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end


def load(f: File, map_location: Any = None, weights_only: bool = True) -> Any:
    """Read what `save` or ``torch.save`` wrote, or any safetensors file as a dictionary of tensors.

    Parameters
    ----------
    f : str, path or binary file
        Where from.
    map_location : device, mapping or function, optional
        Where tensors go. By default back to where they were: those of a GPU to this process's,
        whatever its number, and to the CPU where there is none (PyTorch raises there). A device:
        all go there. A mapping of locations, such as ``{"cuda:0": "cpu"}``: as by default for
        those that it does not name. A function of a storage (a tensor on the CPU) and its
        location: it gives the storage on some device, or None for the default.
    weights_only : bool
        Accepted: nothing in a file is ever executed.

    Raises
    ------
    FormatError
        If the file is damaged, or of another format. It is a `ValueError`.
    DeviceError
        If a device is named that this process cannot use.
    TypeError
        If `map_location` is something else, or its function gives something else.
    """
    place = _map_location.rule(map_location)
    if isinstance(f, (str, os.PathLike)):
        with open(f, "rb") as file:
            return _load(file, place)
    return _load(f, place)


def _load(file: IO[bytes], place: _map_location.Rule) -> Any:
    if file.seekable():
        here = file.tell()
        lead = file.read(9)
        file.seek(here)
        if is_pickle(lead):
            from .checkpoint import torch_file

            return torch_file.load(file, place)
    tensors, metadata = read(file, _end_of(file))
    was = _places(metadata)
    placed = {name: place(t, was.get(name, "cpu")) for name, t in tensors.items()}
    return put_together(placed, metadata)


def _places(metadata: Mapping[str, str]) -> dict[str, str]:
    """Where tensors that were not on the CPU were when they were saved, by name."""
    try:
        told = json.loads(metadata.get(_DEVICES, "{}"))
        return {name: str(_device.device(where)) for where, names in told.items() for name in names}
    except (ValueError, AttributeError, TypeError, RuntimeError, RecursionError) as error:
        raise FormatError(f"[load] {_DEVICES} in the metadata: {error}") from error
