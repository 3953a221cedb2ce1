# SPDX-License-Identifier: Apache-2.0
"""A model's weights by themselves: one file, or shards and an index, named as the field names them.

New files are written beside and flushed, then all get their names, the index last; only then are
shards of an earlier, other set removed. It knows state dicts of the core's tensors, no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

from .. import safetensors_format, serialization
from ..errors import CheckpointError
from . import disk
from .manifest import MANIFEST

__all__ = ["save_weights", "size_in_bytes"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def size_in_bytes(size: int | str) -> int:
    """Understand ``"10GB"`` (powers of ten), ``"10GiB"`` (of two) or a number of bytes.

    Raises
    ------
    ValueError
        For anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = match[2].upper() if match else "?"
    if match is None or unit not in _UNITS or float(match[1]) <= 0:
        raise ValueError(
            f"[save_model] max_shard_size: got {size!r}, expected a number of bytes or the like "
            "of '5GB'"
        )
    return int(float(match[1]) * _UNITS[unit])


def save_weights(weights: Mapping[str, Any], folder: str, max_shard_size: int | str) -> None:
    """Write ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and their index.

    Parameters
    ----------
    weights : mapping
        The core's tensors by name.
    folder : str
        Made if it does not exist; other files in it are left alone.
    max_shard_size : int or str
        Of one file; a single larger tensor gets a file of its own.

    Raises
    ------
    CheckpointError
        If the folder is a file or holds a checkpoint, or the system refuses.
    """
    limit = size_in_bytes(max_shard_size)
    folder = os.path.abspath(os.path.expanduser(folder))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise CheckpointError(f"[save_model] {folder} is a file, expected a folder")
    if os.path.exists(os.path.join(folder, MANIFEST)):
        raise CheckpointError(
            f"[save_model] {folder} holds a checkpoint, whose files have checksums: save the model "
            "to another folder"
        )
    files = _planned(weights, limit)
    mark = secrets.token_hex(4)
    try:
        os.makedirs(folder, exist_ok=True)
        _write(files, folder, mark)
    except OSError as error:
        if isinstance(error, CheckpointError):
            error.args = (str(error).replace("[save_state]", "[save_model]", 1),)
            raise
        raise disk.write_error(error, folder, -1) from error
    finally:
        for name in files:
            with contextlib.suppress(OSError):
                os.unlink(_beside(folder, name, mark))


def _planned(weights: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Give the files: (tensors, metadata) each, and the index as bytes."""
    tensors, metadata = serialization.take_apart(dict(weights))
    if safetensors_format.total_size(tensors) <= limit:
        return {"model.safetensors": (tensors, metadata)}
    parts: list[dict[str, Any]] = []
    room = 0
    for name, tensor in tensors.items():
        size = safetensors_format.total_size({name: tensor})
        if not parts or size > room:
            parts.append({})
            room = limit
        parts[-1][name] = tensor
        room -= size
    files: dict[str, Any] = {}
    placed: dict[str, str] = {}
    for at, part in enumerate(parts, 1):
        name = f"model-{at:05d}-of-{len(parts):05d}.safetensors"
        files[name] = (part, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    total = safetensors_format.total_size(tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    files["model.safetensors.index.json"] = (json.dumps(index, indent=2) + "\n").encode()
    return files


def _beside(folder: str, name: str, mark: str) -> str:
    return os.path.join(folder, f".{name}.{mark}.tmp")


def _write(files: Mapping[str, Any], folder: str, mark: str) -> None:
    for name, content in files.items():
        needed = (
            len(content)
            if isinstance(content, bytes)
            else safetensors_format.total_size(content[0])
        )
        with disk.Writer(_beside(folder, name, mark), needed) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                safetensors_format.write(file, *content)  # type: ignore[arg-type]
    for name in files:  # the index is the last
        disk.rename(_beside(folder, name, mark), os.path.join(folder, name))
    disk.sync_folder(folder)
    for name in os.listdir(folder):
        if _OURS.fullmatch(name) and name not in files:
            os.unlink(os.path.join(folder, name))
