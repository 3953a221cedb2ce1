# SPDX-License-Identifier: Apache-2.0
"""What training scripts import from ``accelerate.utils``, and ``utils.data``.

Names are loaded when they are first asked for, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data as data
    from .constants import (
        MODEL_NAME,
        SAFE_MODEL_NAME,
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        SAFE_WEIGHTS_PATTERN_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
        WEIGHTS_PATTERN_NAME,
    )
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
        SchedulerKwargs,
    )
    from .environment import (
        clear_environment,
        get_int_from_env,
        parse_choice_from_env,
        parse_flag_from_env,
        patch_environment,
        purge_accelerate_environment,
    )
    from .memory import find_executable_batch_size
    from .operations import (
        DistributedOperationException,
        broadcast,
        broadcast_object_list,
        concatenate,
        convert_outputs_to_fp32,
        convert_to_fp32,
        find_batch_size,
        gather,
        gather_object,
        honor_type,
        ignorant_find_batch_size,
        is_namedtuple,
        is_torch_tensor,
        listify,
        pad_across_processes,
        recursively_apply,
        reduce,
        send_to_device,
    )
    from .other import (
        convert_bytes,
        convert_file_size_to_int,
        extract_model_from_parallel,
        is_compiled_module,
        load,
        merge_dicts,
        recursive_getattr,
        release_memory,
        save,
        str_to_bool,
        wait_for_everyone,
        write_basic_config,
    )
    from .progress import tqdm
    from .random import set_seed, synchronize_rng_state, synchronize_rng_states

#: Where each name lives; loaded at its first use.
_HOME = {
    name: module
    for module, names in {
        "constants": "MODEL_NAME SAFE_MODEL_NAME SAFE_WEIGHTS_INDEX_NAME SAFE_WEIGHTS_NAME "
        "SAFE_WEIGHTS_PATTERN_NAME WEIGHTS_INDEX_NAME WEIGHTS_NAME WEIGHTS_PATTERN_NAME",
        "dataclasses": "AutocastKwargs DDPCommunicationHookType DataLoaderConfiguration "
        "DistributedDataParallelKwargs DistributedType GradScalerKwargs "
        "GradientAccumulationPlugin InitProcessGroupKwargs KwargsHandler "
        "LoggerType NonFiniteKwargs PrecisionType ProfileKwargs "
        "ProjectConfiguration RNGType SchedulerKwargs",
        "environment": "clear_environment get_int_from_env parse_choice_from_env "
        "parse_flag_from_env patch_environment purge_accelerate_environment",
        "memory": "find_executable_batch_size",
        "operations": "DistributedOperationException broadcast broadcast_object_list "
        "concatenate convert_outputs_to_fp32 "
        "convert_to_fp32 find_batch_size gather gather_object honor_type "
        "ignorant_find_batch_size is_namedtuple is_torch_tensor listify pad_across_processes "
        "recursively_apply reduce send_to_device",
        "other": "convert_bytes convert_file_size_to_int extract_model_from_parallel "
        "is_compiled_module load merge_dicts recursive_getattr release_memory save str_to_bool "
        "wait_for_everyone write_basic_config",
        "progress": "tqdm",
        "random": "set_seed synchronize_rng_state synchronize_rng_states",
    }.items()
    for name in names.split()
}

__all__ = [
    "AutocastKwargs",
    "DDPCommunicationHookType",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "DistributedOperationException",
    "DistributedType",
    "GradScalerKwargs",
    "GradientAccumulationPlugin",
    "InitProcessGroupKwargs",
    "KwargsHandler",
    "LoggerType",
    "MODEL_NAME",
    "NonFiniteKwargs",
    "PrecisionType",
    "ProfileKwargs",
    "ProjectConfiguration",
    "RNGType",
    "SAFE_MODEL_NAME",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "SAFE_WEIGHTS_PATTERN_NAME",
    "SchedulerKwargs",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "WEIGHTS_PATTERN_NAME",
    "broadcast",
    "broadcast_object_list",
    "clear_environment",
    "concatenate",
    "convert_bytes",
    "convert_file_size_to_int",
    "convert_outputs_to_fp32",
    "convert_to_fp32",
    "extract_model_from_parallel",
    "find_batch_size",
    "find_executable_batch_size",
    "gather",
    "gather_object",
    "get_int_from_env",
    "honor_type",
    "ignorant_find_batch_size",
    "is_compiled_module",
    "is_namedtuple",
    "is_torch_tensor",
    "listify",
    "load",
    "merge_dicts",
    "pad_across_processes",
    "parse_choice_from_env",
    "parse_flag_from_env",
    "patch_environment",
    "purge_accelerate_environment",
    "recursive_getattr",
    "recursively_apply",
    "reduce",
    "release_memory",
    "save",
    "send_to_device",
    "set_seed",
    "str_to_bool",
    "synchronize_rng_state",
    "synchronize_rng_states",
    "tqdm",
    "wait_for_everyone",
    "write_basic_config",
]


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module(f"{__name__}.data")
    if name.startswith("is_") and name not in _HOME:
        imports = importlib.import_module(f"{__name__}.imports")
        if name in imports.__all__:
            return getattr(imports, name)
    if name not in _HOME:
        from ..absent import missing

        raise missing(__name__, name)
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "data"])
