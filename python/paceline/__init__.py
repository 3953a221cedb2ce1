# SPDX-License-Identifier: Apache-2.0
"""paceline trains a model on every core and machine you have.

``import paceline as torch`` runs an ordinary training script: tensors, ``nn``, ``optim`` and
``utils.data`` carry PyTorch's names. `Accelerator` spreads it over processes.

Importing this loads neither NumPy nor any heavy part of its own: those come with their first use.
"""

from __future__ import annotations

import importlib

from paceline import _C, _native, cuda, dtypes
from paceline._device import device
from paceline._factories import (
    arange,
    as_tensor,
    empty,
    empty_like,
    eye,
    from_numpy,
    frombuffer,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    scalar_tensor,
    tensor,
    zeros,
    zeros_like,
)
from paceline._functions import (
    ALIASES,
    METHODS,
    allclose,
    broadcast_to,
    cat,
    count_nonzero,
    diag,
    e,
    equal,
    from_method,
    hstack,
    inf,
    is_tensor,
    isclose,
    logsumexp,
    meshgrid,
    nan,
    numel,
    outer,
    pi,
    promote_types,
    result_type,
    roll,
    stack,
    vstack,
    where,
)
from paceline._grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from paceline._tensor import Tensor
from paceline._version import __version__
from paceline.dtypes import (
    bfloat16,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    iinfo,
    int32,
    int64,
    set_default_dtype,
    uint8,
)
from paceline.random import (
    Generator,
    bernoulli,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    from paceline import amp, autograd, backends, distributed, errors, nn, optim, utils
    from paceline._dlpack import from_dlpack
    from paceline._precision import get_float32_matmul_precision, set_float32_matmul_precision
    from paceline._printing import set_printoptions
    from paceline.accelerator import Accelerator
    from paceline.amp import autocast
    from paceline.data_loader import skip_first_batches
    from paceline.launchers import debug_launcher, notebook_launcher
    from paceline.serialization import load, save
    from paceline.state import PartialState
    from paceline.utils.dataclasses import (
        AutocastKwargs,
        DataLoaderConfiguration,
        DDPCommunicationHookType,
        DistributedDataParallelKwargs,
        DistributedType,
        GradientAccumulationPlugin,
        GradScalerKwargs,
        InitProcessGroupKwargs,
        NonFiniteKwargs,
        ProfileKwargs,
        ProjectConfiguration,
        SchedulerKwargs,
    )
    from paceline.utils.memory import find_executable_batch_size
    from paceline.utils.random import synchronize_rng_states

# PyTorch's names of dtypes that are also names of builtins.
bool = dtypes.bool_  # noqa: A001
float = float32  # noqa: A001
double = float64
half = float16
int = int32  # noqa: A001
long = int64

Size = tuple[dtypes.Int, ...]

#: Names that are loaded at their first use, and the module that has each.
_LATER = {
    "Accelerator": "accelerator",
    "AutocastKwargs": "utils.dataclasses",
    "DDPCommunicationHookType": "utils.dataclasses",
    "DataLoaderConfiguration": "utils.dataclasses",
    "DistributedDataParallelKwargs": "utils.dataclasses",
    "DistributedType": "utils.dataclasses",
    "GradScalerKwargs": "utils.dataclasses",
    "GradientAccumulationPlugin": "utils.dataclasses",
    "InitProcessGroupKwargs": "utils.dataclasses",
    "NonFiniteKwargs": "utils.dataclasses",
    "PartialState": "state",
    "ProfileKwargs": "utils.dataclasses",
    "SchedulerKwargs": "utils.dataclasses",
    "ProjectConfiguration": "utils.dataclasses",
    "autocast": "amp",
    "debug_launcher": "launchers",
    "find_executable_batch_size": "utils.memory",
    "from_dlpack": "_dlpack",
    "get_float32_matmul_precision": "_precision",
    "is_rich_available": "utils.imports",
    "load": "serialization",
    "notebook_launcher": "launchers",
    "save": "serialization",
    "set_float32_matmul_precision": "_precision",
    "set_printoptions": "_printing",
    "skip_first_batches": "data_loader",
    "synchronize_rng_states": "utils.random",
}
_MODULES = frozenset(
    "accelerator amp autograd backends data_loader distributed errors launchers local_sgd logging "
    "memory_utils nn optim optimizer random scheduler serialization state tracking utils".split()
)

__all__ = [
    "Accelerator",
    "AutocastKwargs",
    "DDPCommunicationHookType",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "DistributedType",
    "Generator",
    "GradScalerKwargs",
    "GradientAccumulationPlugin",
    "InitProcessGroupKwargs",
    "NonFiniteKwargs",
    "PartialState",
    "ProfileKwargs",
    "ProjectConfiguration",
    "SchedulerKwargs",
    "Size",
    "Tensor",
    "__version__",
    "allclose",
    "amp",
    "arange",
    "as_tensor",
    "autocast",
    "autograd",
    "backends",
    "bernoulli",
    "bfloat16",
    "bool",
    "broadcast_to",
    "cat",
    "count_nonzero",
    "cuda",
    "debug_launcher",
    "default_generator",
    "device",
    "diag",
    "distributed",
    "double",
    "dtype",
    "dtypes",
    "e",
    "empty",
    "empty_like",
    "enable_grad",
    "equal",
    "errors",
    "eye",
    "find_executable_batch_size",
    "finfo",
    "float",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "frombuffer",
    "full",
    "full_like",
    "get_default_dtype",
    "get_float32_matmul_precision",
    "get_num_threads",
    "get_rng_state",
    "half",
    "hstack",
    "iinfo",
    "inf",
    "inference_mode",
    "initial_seed",
    "int",
    "int32",
    "int64",
    "is_grad_enabled",
    "is_tensor",
    "isclose",
    "linspace",
    "load",
    "logsumexp",
    "long",
    "manual_seed",
    "meshgrid",
    "multinomial",
    "nan",
    "nn",
    "no_grad",
    "normal",
    "notebook_launcher",
    "numel",
    "ones",
    "ones_like",
    "optim",
    "outer",
    "pi",
    "promote_types",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "result_type",
    "roll",
    "save",
    "scalar_tensor",
    "seed",
    "set_default_dtype",
    "set_float32_matmul_precision",
    "set_grad_enabled",
    "set_num_threads",
    "set_printoptions",
    "set_rng_state",
    "skip_first_batches",
    "stack",
    "synchronize_rng_states",
    "tensor",
    "uint8",
    "utils",
    "vstack",
    "where",
    "zeros",
    "zeros_like",
]


def get_num_threads() -> dtypes.Int:
    """Number of threads that one operation may use."""
    return _C.get_num_threads()


def set_num_threads(n: dtypes.Int, /) -> None:
    """Set the number of threads that one operation may use."""
    _C.set_num_threads(n)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LATER:
        value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    elif name in METHODS:
        value = from_method(name)
    elif name in ALIASES:
        value = getattr(importlib.import_module(__name__), ALIASES[name])
    else:
        from paceline.absent import missing

        raise missing(__name__, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES, *METHODS, *ALIASES})


_C.register_classes(Tensor)
_native.install()
