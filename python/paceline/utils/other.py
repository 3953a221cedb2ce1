# SPDX-License-Identifier: Apache-2.0
"""Small functions of ``accelerate.utils``: waiting, files, models, memory, words."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from functools import reduce
from typing import Any

from paceline import cuda

from ..environment import truth
from ..state import PartialState

__all__ = [
    "convert_bytes",
    "convert_file_size_to_int",
    "extract_model_from_parallel",
    "is_compiled_module",
    "load",
    "merge_dicts",
    "recursive_getattr",
    "release_memory",
    "save",
    "str_to_bool",
    "wait_for_everyone",
    "write_basic_config",
]


def wait_for_everyone() -> None:
    """Wait until every process has come here."""
    PartialState().wait_for_everyone()


def save(
    obj: Any, f: Any, save_on_each_node: bool = False, safe_serialization: bool = False
) -> None:
    """Save an object with ``paceline.save`` on the main process (of each machine, if asked)."""
    state = PartialState()
    if state.is_local_main_process if save_on_each_node else state.is_main_process:
        from ..checkpoint.run import save_object

        save_object(obj, f)


def extract_model_from_parallel(
    model: Any, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
) -> Any:
    """Give the model itself: ``prepare`` does not wrap it."""
    if not keep_fp32_wrapper:
        from ..model import unwrap_forward

        unwrap_forward(model)
    return model


def is_compiled_module(module: Any) -> bool:
    """Tell whether ``torch.compile`` made a module."""
    return hasattr(module, "_orig_mod")


def load(f: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """Load what ``save`` wrote, on every process that calls it.

    Parameters
    ----------
    f : path or file
        Where from.
    map_location : device, mapping or function, optional
        Where tensors go, as for ``paceline.load``.
    **kwargs : object
        As for ``paceline.load``.
    """
    from ..serialization import load as load_here

    return load_here(f, map_location=map_location, **kwargs)


def release_memory(*objects: Any) -> list[None]:
    """Give a None for each object, to assign it to, collect garbage, and empty the GPU's cache.

    Examples
    --------
    >>> a, b = object(), object()
    >>> a, b = release_memory(a, b)
    """
    count = len(objects)
    del objects
    gc.collect()
    cuda.empty_cache()
    return [None] * count


def merge_dicts(source: Mapping[str, Any], destination: dict[str, Any]) -> dict[str, Any]:
    """Put the entries of one dict into another, dicts within dicts included.

    Examples
    --------
    >>> merge_dicts({"a": {"b": 1}}, {"a": {"c": 2}})
    {'a': {'c': 2, 'b': 1}}
    """
    for key, value in source.items():
        if isinstance(value, Mapping):
            merge_dicts(value, destination.setdefault(key, {}))
        else:
            destination[key] = value
    return destination


def recursive_getattr(obj: Any, attr: str) -> Any:
    """Follow a path of attributes.

    Examples
    --------
    >>> recursive_getattr(str, "upper.__name__")
    'upper'
    """
    return reduce(getattr, attr.split("."), obj)


def convert_bytes(size: float) -> str:
    """Give a size in words, in powers of 1024.

    Examples
    --------
    >>> convert_bytes(3 * 2**20)
    '3.0 MB'
    """
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1024:
            return f"{round(size, 2)} {unit}"
        size /= 1024
    return f"{round(size, 2)} PB"


def convert_file_size_to_int(size: int | str) -> int:
    """Read a size in bytes; ``KB``, ``MB``, ``GB`` are powers of 1000, ``KiB`` and so on of 1024.

    Raises
    ------
    ValueError
        For other words.

    Examples
    --------
    >>> convert_file_size_to_int("1MiB")
    1048576
    """
    from ..checkpoint.sharded import size_in_bytes

    return size_in_bytes(size)


def str_to_bool(value: str, to_bool: bool = False) -> bool | int:
    """Read a yes or no, as 1 or 0 unless ``to_bool``.

    Raises
    ------
    ValueError
        For any other word.
    """
    answer = truth(value)
    if answer is None:
        raise ValueError(f"[str_to_bool] got {value!r}, expected true or false")
    return answer if to_bool else int(answer)


def write_basic_config(mixed_precision: str = "no", save_location: str | None = None) -> str | bool:
    """Write a configuration file for this machine, unless there is one.

    Parameters
    ----------
    mixed_precision : {"no", "fp16", "bf16"}
        What ranks compute in.
    save_location : path, optional
        Where; by default the user's ``default_config.yaml``.

    Returns
    -------
    str or bool
        The path; False if there is a file already, which is left as it is.

    Raises
    ------
    ValueError
        For another precision.
    """
    from ..commands.config import write
    from ..commands.config_file import default_path
    from ..commands.job import PRECISIONS
    from ..commands.questions import basic

    mode = str(mixed_precision).lower()
    if mode not in PRECISIONS:
        raise ValueError(
            f"[write_basic_config] mixed_precision: got {mixed_precision!r}, "
            f"expected one of {', '.join(PRECISIONS)}"
        )
    path = os.fspath(save_location) if save_location is not None else default_path()
    if os.path.exists(path):
        return False
    write(path, basic(mode))
    return path
