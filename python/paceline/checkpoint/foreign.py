# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders of Hugging Face Accelerate, and weights in shards.

They hold pickles, which the restricted unpickler reads. They hold no checksums and no place in the
data, so a run goes on from them, but not bit for bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..safetensors_format import FormatError
from ..serialization import put_together
from . import torch_file
from .disk import OpenFolder, clean_name
from .manifest import read_tensors
from .run import Loaded

__all__ = ["is_accelerates", "read", "read_weights"]

_INDEX_LIMIT = 64 << 20  # bytes
_WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))


def is_accelerates(folder: OpenFolder) -> bool:
    """Tell whether a folder looks like one of ``accelerate``'s ``save_state``."""
    theirs = _weights_name(folder, 0) is not None or folder.has("random_states_0.pkl")
    return theirs and not folder.has("rank_0.safetensors")


def read(folder: OpenFolder, rank: int, world: int) -> Loaded:
    """Read an Accelerate folder for one rank of ``world``.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or asks for more than tensors and plain containers.
    """
    loaded = Loaded([], foreign=True)
    at = 0
    while _weights_name(folder, at) is not None:
        loaded.weights.append(read_weights(folder, at))
        at += 1
    for stem, into in (("optimizer", loaded.optimizers), ("scheduler", loaded.schedulers)):
        into += _row(folder, lambda at, stem=stem: _numbered(stem, "bin", at))  # type: ignore[misc]
    loaded.custom = _row(folder, lambda at: f"custom_checkpoint_{at}.pkl")
    if folder.has("scaler.pt"):
        loaded.scaler = _unpickled(folder, "scaler.pt")
    states = [name for name in folder.names() if re.fullmatch(r"random_states_\d+\.pkl", name)]
    loaded.world = len(states)
    if not states:
        raise CheckpointError(f"[load_state] {folder.path} has no random_states_0.pkl")
    needed = [rank] if loaded.world == world else range(loaded.world)
    for one in needed:
        loaded.ranks[one] = _rank(_unpickled(folder, f"random_states_{one}.pkl"), one)
    loaded.notices.append(
        f"{folder.path} was written by Accelerate: it does not hold the place in the data, so "
        "loaders start at the beginning of epoch 0 (use skip_first_batches), and what it has of "
        "PyTorch's random state does not apply to other generators"
    )
    return loaded


def _numbered(stem: str, ending: str, at: int) -> str:
    return f"{stem}.{ending}" if at == 0 else f"{stem}_{at}.{ending}"


def _row(folder: OpenFolder, name: Callable[[int], str]) -> list[Any]:
    found: list[Any] = []
    while folder.has(name(len(found))):
        found.append(_unpickled(folder, name(len(found))))
    return found


def _unpickled(folder: OpenFolder, name: str) -> Any:
    with folder.open(name) as file:
        try:
            return torch_file.load(file)
        except FormatError as error:
            raise CheckpointError(f"[load_state] {folder.path}/{name}: {error}") from error


def _rank(saved: Any, rank: int) -> dict[str, Any]:
    keys = ("random_state", "numpy_random_seed", "torch_manual_seed")
    if not isinstance(saved, dict) or not all(key in saved for key in keys):
        raise CheckpointError(f"[load_state] random_states_{rank}.pkl: random state is missing")
    return {
        "random": {
            "python": saved["random_state"],
            "numpy": saved["numpy_random_seed"],
            "engines": {"torch": _torch_states(saved, rank)},
        },
    }


def _torch_states(saved: dict[str, Any], rank: int) -> Any:
    gpus = saved.get("torch_cuda_manual_seed")  # those of all that the process saw
    if not isinstance(gpus, (list, tuple)) or not gpus:
        return saved["torch_manual_seed"]
    return {"cpu": saved["torch_manual_seed"], "cuda": gpus[rank % len(gpus)]}


# -- weights ----------------------------------------------------------------------------------


def _weights_name(folder: OpenFolder, at: int) -> str | None:
    for stem, ending in _WEIGHTS:
        name = _numbered(stem, ending, at)
        for found in (name, f"{name}.index.json"):
            if folder.has(found):
                return found
    return None


def read_weights(folder: OpenFolder, at: int = 0) -> dict[str, Any]:
    """Read the weights of the at-th model: one file, or shards with an index.

    Raises
    ------
    CheckpointError
        If there are none, a file is damaged, or the index names a file that is not below the
        folder or not a regular one.
    """
    name = _weights_name(folder, at)
    if name is None:
        raise CheckpointError(f"[load_state] {folder.path} has no weights: expected a {_WEIGHTS}")
    if not name.endswith(".json"):
        return _one(folder, name)
    with folder.open(name) as file:
        raw = file.read(_INDEX_LIMIT + 1)
    try:
        body = json.loads(raw) if len(raw) <= _INDEX_LIMIT else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"[load_state] {folder.path}/{name} is no JSON: {error}") from error
    placed = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
        raise CheckpointError(f"[load_state] {folder.path}/{name} has no weight_map")
    found: dict[str, Any] = {}
    for shard in sorted(set(placed.values())):
        part = _one(folder, clean_name(shard))
        found |= {key: value for key, value in part.items() if placed.get(key) == shard}
    missing = [key for key in placed if key not in found]
    if missing:
        raise CheckpointError(
            f"[load_state] {folder.path}/{name}: {placed[missing[0]]} has no tensor {missing[0]!r}"
        )
    return found


def _one(folder: OpenFolder, name: str) -> dict[str, Any]:
    if name.endswith(".safetensors"):
        whole: dict[str, Any] = put_together(*read_tensors(folder, name, None))
        return whole
    found: Any = _unpickled(folder, name)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"[load_state] {folder.path}/{name} holds no state dict")
    return dict(found)
