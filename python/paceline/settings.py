# SPDX-License-Identifier: Apache-2.0
"""What an Accelerator was asked for: its arguments, resolved against the environment, once.

Precedence: argument, then environment, then default. Options of later versions are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from .state import Environment
from .utils.dataclasses import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    KwargsHandler,
    PrecisionType,
    not_yet,
)

__all__ = ["LATER", "Settings", "resolve", "resolve_precision"]

# Arguments of Accelerate's constructor that this version refuses, and what to do instead.
LATER: Mapping[str, str] = {
    "deepspeed_plugin": "leave it out",
    "fsdp_plugin": "leave it out",
    "torch_tp_plugin": "leave it out",
    "megatron_lm_plugin": "leave it out",
    "rng_types": "leave it out: processes agree on the order of the data without it",
    "log_with": "log on the main process yourself",
    "project_dir": "write with accelerator.save(obj, path)",
    "project_config": "write with accelerator.save(obj, path)",
    "dynamo_backend": "leave it out",
    "dynamo_plugin": "leave it out",
    "deepspeed_plugins": "leave it out",
    "parallelism_config": "leave it out",
}

H = TypeVar("H", bound=KwargsHandler)


@dataclass(frozen=True)
class Settings:
    """An Accelerator's arguments after validation."""

    device_placement: bool = True
    precision: PrecisionType = PrecisionType.NO
    cpu: bool = False
    data: DataLoaderConfiguration = field(default_factory=DataLoaderConfiguration)
    accumulation: GradientAccumulationPlugin = field(default_factory=GradientAccumulationPlugin)
    step_scheduler_with_optimizer: bool = True
    ddp: DistributedDataParallelKwargs = field(default_factory=DistributedDataParallelKwargs)
    init: InitProcessGroupKwargs = field(default_factory=InitProcessGroupKwargs)
    autocast: AutocastKwargs = field(default_factory=AutocastKwargs)


def resolve(
    env: Environment,
    *,
    device_placement: bool,
    split_batches: bool | None,
    mixed_precision: str | None,
    gradient_accumulation_steps: int | None,
    cpu: bool,
    dataloader_config: DataLoaderConfiguration | None,
    gradient_accumulation_plugin: GradientAccumulationPlugin | None,
    step_scheduler_with_optimizer: bool,
    kwargs_handlers: Sequence[KwargsHandler] | None,
    later: Mapping[str, Any],
) -> Settings:
    """Make the settings of one Accelerator.

    Raises
    ------
    ValueError
        For a value that cannot be, or two arguments that contradict each other.
    NotImplementedError
        For an argument of a later version.
    """
    for name, value in later.items():
        if value is not None:
            not_yet(f"Accelerator({name}=...)", LATER[name])
    handlers = _by_class(kwargs_handlers or ())
    return Settings(
        device_placement=device_placement,
        precision=resolve_precision(mixed_precision, env),
        cpu=cpu or env.use_cpu,
        data=_data(dataloader_config, split_batches),
        accumulation=_accumulation(gradient_accumulation_plugin, gradient_accumulation_steps, env),
        step_scheduler_with_optimizer=step_scheduler_with_optimizer,
        ddp=_one(handlers, DistributedDataParallelKwargs),
        init=_one(handlers, InitProcessGroupKwargs),
        autocast=_one(handlers, AutocastKwargs),
    )


def resolve_precision(argument: str | None, env: Environment) -> PrecisionType:
    """Decide the precision: argument, else ``ACCELERATE_MIXED_PRECISION``, else "no".

    Raises
    ------
    ValueError
        For an unknown mode.
    NotImplementedError
        For fp16 and fp8.
    """
    value = env.mixed_precision if argument is None else argument
    mode = "no" if value is None else str(value).lower()
    if mode not in PrecisionType.list():
        raise ValueError(
            f"Unknown mixed_precision mode: {value}. Choose between {PrecisionType.list()}"
        )
    if mode == "fp16":
        not_yet("mixed_precision='fp16'", "it comes with gradient scaling; use 'bf16'")
    if mode == "fp8":
        not_yet("mixed_precision='fp8'", "use 'bf16'")
    return PrecisionType(mode)


def _data(config: DataLoaderConfiguration | None, split: bool | None) -> DataLoaderConfiguration:
    if split is None:
        return config or DataLoaderConfiguration()
    if config is not None and config.split_batches != split:
        raise ValueError(
            f"[Accelerator] split_batches={split} contradicts "
            f"dataloader_config.split_batches={config.split_batches}: give it once"
        )
    return replace(config or DataLoaderConfiguration(), split_batches=split)


def _accumulation(
    plugin: GradientAccumulationPlugin | None, steps: int | None, env: Environment
) -> GradientAccumulationPlugin:
    if plugin is not None:
        if steps not in (None, 1):
            raise ValueError(
                "[Accelerator] give gradient_accumulation_steps or gradient_accumulation_plugin, "
                "not both"
            )
        return plugin
    # An explicit argument wins over the environment, also when it is 1.
    if steps is None:
        steps = env.gradient_accumulation_steps or 1
    return GradientAccumulationPlugin(num_steps=steps)


def _by_class(handlers: Sequence[KwargsHandler]) -> dict[type[KwargsHandler], KwargsHandler]:
    known = (DistributedDataParallelKwargs, InitProcessGroupKwargs, AutocastKwargs)
    found: dict[type[KwargsHandler], KwargsHandler] = {}
    for handler in handlers:
        kind = type(handler)
        if kind not in known:
            names = ", ".join(cls.__name__ for cls in known)
            raise ValueError(
                f"[Accelerator] unsupported kwargs handler: got {kind.__name__}, "
                f"expected one of {names}"
            )
        if kind in found:
            raise ValueError(f"[Accelerator] you can pass only one {kind.__name__}")
        found[kind] = handler
    return found


def _one(handlers: Mapping[type[KwargsHandler], KwargsHandler], kind: type[H]) -> H:
    handler = handlers.get(kind)
    return handler if isinstance(handler, kind) else kind()
