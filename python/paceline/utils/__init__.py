# SPDX-License-Identifier: Apache-2.0
"""What training scripts import from ``accelerate.utils``, and ``utils.data``.

Names are loaded when they are first asked for, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data as data
    from .dataclasses import (
        AutocastKwargs,
        DataLoaderConfiguration,
        DDPCommunicationHookType,
        DistributedDataParallelKwargs,
        DistributedType,
        GradientAccumulationPlugin,
        GradScalerKwargs,
        InitProcessGroupKwargs,
        KwargsHandler,
        LoggerType,
        NonFiniteKwargs,
        PrecisionType,
        ProfileKwargs,
        ProjectConfiguration,
        RNGType,
    )
    from .operations import (
        broadcast,
        broadcast_object_list,
        concatenate,
        convert_outputs_to_fp32,
        convert_to_fp32,
        find_batch_size,
        gather,
        gather_object,
        honor_type,
        is_namedtuple,
        listify,
        pad_across_processes,
        recursively_apply,
        reduce,
        send_to_device,
    )
    from .other import extract_model_from_parallel, save, wait_for_everyone
    from .progress import tqdm
    from .random import set_seed

__all__ = [
    "AutocastKwargs",
    "DDPCommunicationHookType",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "DistributedType",
    "GradScalerKwargs",
    "GradientAccumulationPlugin",
    "InitProcessGroupKwargs",
    "KwargsHandler",
    "LoggerType",
    "NonFiniteKwargs",
    "PrecisionType",
    "ProfileKwargs",
    "ProjectConfiguration",
    "RNGType",
    "broadcast",
    "broadcast_object_list",
    "concatenate",
    "convert_outputs_to_fp32",
    "convert_to_fp32",
    "extract_model_from_parallel",
    "find_batch_size",
    "gather",
    "gather_object",
    "honor_type",
    "is_namedtuple",
    "listify",
    "pad_across_processes",
    "recursively_apply",
    "reduce",
    "save",
    "send_to_device",
    "set_seed",
    "tqdm",
    "wait_for_everyone",
]

_HOME = {
    "AutocastKwargs": "dataclasses",
    "DDPCommunicationHookType": "dataclasses",
    "DataLoaderConfiguration": "dataclasses",
    "DistributedDataParallelKwargs": "dataclasses",
    "DistributedType": "dataclasses",
    "GradScalerKwargs": "dataclasses",
    "GradientAccumulationPlugin": "dataclasses",
    "InitProcessGroupKwargs": "dataclasses",
    "KwargsHandler": "dataclasses",
    "LoggerType": "dataclasses",
    "NonFiniteKwargs": "dataclasses",
    "PrecisionType": "dataclasses",
    "ProfileKwargs": "dataclasses",
    "ProjectConfiguration": "dataclasses",
    "RNGType": "dataclasses",
    "extract_model_from_parallel": "other",
    "save": "other",
    "set_seed": "random",
    "tqdm": "progress",
    "wait_for_everyone": "other",
}


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module(f"{__name__}.data")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'operations')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "data"])
