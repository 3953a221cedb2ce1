# SPDX-License-Identifier: Apache-2.0
"""What is logged, as plain numbers and text. Knows no tensor library: tensors give ``tolist``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Plain", "flat", "plain"]

Plain = bool | int | float | str | None


def plain(name: str, value: Any) -> Plain:
    """Give a logged value as a plain number, text or None.

    Parameters
    ----------
    name : str
        What the value is called, for the message.
    value : object
        A number, a text, None, or a tensor, array or NumPy scalar of one element.

    Raises
    ------
    TypeError
        For anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        # A NumPy float64 is a float too, but prints as np.float64(...).
        return float(value) if isinstance(value, float) else value
    inner = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(inner, list) and len(inner) == 1:
        inner = inner[0]
    if isinstance(inner, (bool, int, float, str)):
        return inner
    shape = tuple(getattr(value, "shape", ()))
    got = type(value).__name__ + (f" of shape {shape}" if shape else "")
    raise TypeError(
        f"[log] cannot record {name!r}: got {got}, expected a number, a text or a tensor of one "
        "element; reduce it first, for example with .mean()"
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Give nested dicts as one: ``{"loss": {"train": 1}}`` becomes ``{"loss/train": 1}``."""
    found: dict[str, Plain] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        else:
            found[name] = plain(name, value)
    return found
