# SPDX-License-Identifier: Apache-2.0
"""Where loaded tensors go: what ``map_location`` of `paceline.load` means, as in PyTorch.

A rule is given what was read, on the CPU, and where it was when it was saved ("cpu", "cuda:0").
Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paceline import _C, _device, cuda

__all__ = ["Rule", "rule"]

Rule = Callable[[Any, str], Any]


def rule(map_location: Any) -> Rule:
    """The rule for an argument of ``load``.

    Raises
    ------
    TypeError
        If it is nothing that PyTorch takes either.
    """
    if map_location is None:
        return _back
    if isinstance(map_location, Mapping):
        targets = {str(key): value for key, value in map_location.items()}
        return lambda t, was: _to(t, targets[was]) if was in targets else _back(t, was)
    if isinstance(map_location, (str, _device.device)) or _device.is_device(map_location):
        index = _device.place("load", map_location)
        return lambda t, was: _C.to_device(t, index, False)
    if callable(map_location):
        return lambda t, was: _chosen(map_location, t, was)
    raise TypeError(
        f"[load] map_location: got {type(map_location).__name__}, expected None, a device, a "
        "mapping such as {'cuda:0': 'cpu'}, or a function of a storage and its location"
    )


def _to(t: Any, where: Any) -> Any:
    return _C.to_device(t, _device.place("load", where), False)


def _back(t: Any, was: str) -> Any:
    """Where it was: on this process's GPU, whatever its number, if it was on one and there is one.

    A process has one GPU, so what another rank saved of its own comes to this one's.
    """
    if not was.startswith("cuda") or not cuda.is_available():
        return t
    return _to(t, "cuda")


def _chosen(function: Callable[[Any, str], Any], t: Any, was: str) -> Any:
    got = function(t, was)
    if got is None:
        return _back(t, was)
    if not isinstance(got, _C.Tensor) or (got._dtype, got._numel()) != (t._dtype, t._numel()):
        raise TypeError(
            f"[load] map_location: the function gave {type(got).__name__}, expected the storage "
            "that it was given, on some device (storage.cuda(), storage.cpu()), or None"
        )
    return got
