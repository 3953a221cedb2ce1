# SPDX-License-Identifier: Apache-2.0
"""Making a batch from samples."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

from paceline import _C
from paceline._factories import as_tensor, tensor
from paceline.dtypes import float64


def _is_array(value: object) -> bool:
    # An array or a scalar of NumPy's, without loading NumPy.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def default_collate(batch: Sequence[Any]) -> Any:
    """Join samples: tensors and arrays are stacked, numbers become tensors, nesting stays.

    Parameters
    ----------
    batch : sequence
        Samples of one structure.

    Returns
    -------
    Tensor, or the structure of a sample with tensors in it
        A tuple in a sample becomes a list, as in PyTorch; floats become float64.

    Raises
    ------
    TypeError
        For a type that cannot be joined.
    RuntimeError
        If sequences or tensors differ in size.
    """
    first = batch[0]
    if isinstance(first, _C.Tensor):
        return _C.stack(batch, 0)
    if _is_array(first):
        return _join_arrays(batch)
    if isinstance(first, float):
        return tensor(list(batch), dtype=float64)
    if isinstance(first, int):
        return tensor(list(batch))
    if isinstance(first, (str, bytes)):
        return list(batch)
    if isinstance(first, Mapping):
        joined = {key: default_collate([sample[key] for sample in batch]) for key in first}
        return _like(first, joined)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(default_collate(column) for column in zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        columns = [default_collate(column) for column in zip(*batch, strict=True)]
        if isinstance(first, tuple) or not isinstance(first, MutableSequence):
            return columns
        return columns if type(first) is list else _filled(first, columns)
    raise TypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {type(first)}"
    )


def _join_arrays(batch: Sequence[Any]) -> Any:
    first = batch[0]
    if first.dtype.kind in "SUOV":
        raise TypeError(
            "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
            f"found {first.dtype}"
        )
    if first.ndim == 0:
        return _C.stack([tensor(value) for value in batch], 0)
    return _C.stack([as_tensor(array) for array in batch], 0)


def _like(first: Any, joined: dict[Any, Any]) -> Any:
    # Mappings keep their type where it can be rebuilt.
    if type(first) is dict:
        return joined
    try:
        if isinstance(first, MutableMapping):
            clone = copy.copy(first)
            clone.update(joined)
            return clone
        return type(first)(joined)
    except TypeError:
        return joined


def _filled(first: Any, columns: list[Any]) -> Any:
    try:
        clone = copy.copy(first)
        for i, column in enumerate(columns):
            clone[i] = column
        return clone
    except TypeError:
        return columns


def default_convert(data: Any) -> Any:
    """Arrays inside one sample as tensors; the rest as it is, in containers of the same kind."""
    if isinstance(data, (_C.Tensor, str, bytes)):
        return data
    if _is_array(data):
        return data if data.dtype.kind in "SUOV" else as_tensor(data)
    if isinstance(data, Mapping):
        return _like(data, {key: default_convert(value) for key, value in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(default_convert(value) for value in data))
    if isinstance(data, Sequence):
        return _sequence_like(data, [default_convert(value) for value in data])
    return data


def _sequence_like(data: Any, items: list[Any]) -> Any:
    # A tuple becomes a list, as in PyTorch; other sequences keep their type where they can.
    if isinstance(data, tuple):
        return items
    if isinstance(data, MutableSequence):
        return _filled(data, items)
    try:
        return type(data)(items)
    except TypeError:
        return items


Collate = Callable[[Any], Any]
