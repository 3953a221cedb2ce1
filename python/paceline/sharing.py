# SPDX-License-Identifier: Apache-2.0
"""How ``split_between_processes`` cuts a list, tuple, tensor, table or dict of those.

A pure function of rank and world; it knows no process group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["split_share"]


def split_share(inputs: Any, rank: int, world: int, apply_padding: bool) -> Any:
    """Give rank's share of ``inputs``; see ``PartialState.split_between_processes``.

    Raises
    ------
    ValueError
        When the values of a dict differ in length.
    TypeError
        For something that has no parts.
    """
    if world == 1:
        return inputs
    if isinstance(inputs, Mapping):
        lengths = {key: len(value) for key, value in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"[split_between_processes] the values differ in length: got {lengths}"
            )
        return {k: split_share(v, rank, world, apply_padding) for k, v in inputs.items()}
    whole = isinstance(inputs, (str, bytes))  # one value, whose letters nobody wants shared out
    if whole or not hasattr(inputs, "__len__") or not hasattr(inputs, "__getitem__"):
        raise TypeError(
            f"[split_between_processes] cannot be shared out: got {type(inputs).__name__}, "
            "expected a list, tuple, dict, tensor or datasets.Dataset"
        )
    each, extra = divmod(len(inputs), world)
    start = rank * each + min(rank, extra)
    stop = start + each + (1 if rank < extra else 0)
    missing = (each + (1 if extra else 0)) - (stop - start) if apply_padding and len(inputs) else 0
    if hasattr(inputs, "column_names"):  # a datasets.Dataset: slicing it would give columns
        last = [len(inputs) - 1] * missing
        return inputs.select([*range(start, stop), *last])
    share = inputs[start:stop]
    if missing == 0:
        return share
    if isinstance(inputs, (list, tuple)):
        return share + inputs[-1:] * missing
    from .engines import engine_of_tensor

    return engine_of_tensor(inputs).cat([share, *[inputs[-1:]] * missing])
