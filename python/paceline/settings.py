# SPDX-License-Identifier: Apache-2.0
"""What an Accelerator was asked for, resolved once, and where each value came from.

Precedence: argument, command line, environment, file given or the project's, the user's file,
default. The launcher decides among the middle ones and hands the result on in the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from .environment import Environment
from .utils.dataclasses import (
    AutocastKwargs,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    NonFiniteAction,
    NonFiniteKwargs,
    PrecisionType,
    ProfileKwargs,
    ProjectConfiguration,
    RNGType,
    SchedulerKwargs,
    not_yet,
)

__all__ = ["LATER", "Arguments", "Settings", "resolve", "resolve_precision"]

# Arguments of Accelerate's constructor that this version refuses, and what to do instead.
LATER: Mapping[str, str] = {
    "deepspeed_plugin": "leave it out",
    "fsdp_plugin": "leave it out",
    "torch_tp_plugin": "leave it out",
    "megatron_lm_plugin": "leave it out",
    "dynamo_backend": "leave it out",
    "dynamo_plugin": "leave it out",
    "deepspeed_plugins": "leave it out",
    "parallelism_config": "leave it out",
}

_HANDLERS: tuple[type[KwargsHandler], ...] = (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    AutocastKwargs,
    GradScalerKwargs,
    ProfileKwargs,
    NonFiniteKwargs,
    SchedulerKwargs,
)
H = TypeVar("H", bound=KwargsHandler)


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``Accelerator``, as given; see there."""

    device_placement: bool
    split_batches: bool | None
    mixed_precision: PrecisionType | str | None
    gradient_accumulation_steps: int | None
    cpu: bool
    dataloader_config: DataLoaderConfiguration | None
    deepspeed_plugin: Any
    fsdp_plugin: Any
    torch_tp_plugin: Any
    megatron_lm_plugin: Any
    rng_types: Sequence[RNGType | str] | None
    log_with: Any
    project_dir: Any
    project_config: ProjectConfiguration | None
    gradient_accumulation_plugin: GradientAccumulationPlugin | None
    step_scheduler_with_optimizer: bool
    kwargs_handlers: Sequence[KwargsHandler] | None
    dynamo_backend: Any
    dynamo_plugin: Any
    deepspeed_plugins: Any
    parallelism_config: Any


@dataclass(frozen=True)
class Settings:
    """An Accelerator's arguments after validation.

    Attributes
    ----------
    log_with : tuple
        What ``log_with`` named, in its order: names and trackers.
    sources : mapping
        Where a setting came from, by the name that ``describe`` prints; the default if missing.
    """

    device_placement: bool = True
    precision: PrecisionType = PrecisionType.NO
    cpu: bool = False
    data: DataLoaderConfiguration = field(default_factory=DataLoaderConfiguration)
    accumulation: GradientAccumulationPlugin = field(
        default_factory=lambda: GradientAccumulationPlugin(num_steps=1)
    )
    step_scheduler_with_optimizer: bool = True
    ddp: DistributedDataParallelKwargs = field(default_factory=DistributedDataParallelKwargs)
    init: InitProcessGroupKwargs = field(default_factory=InitProcessGroupKwargs)
    autocast: AutocastKwargs = field(default_factory=AutocastKwargs)
    scaler: GradScalerKwargs = field(default_factory=GradScalerKwargs)
    scheduler: SchedulerKwargs = field(default_factory=SchedulerKwargs)
    profile: ProfileKwargs = field(default_factory=ProfileKwargs)
    nonfinite: NonFiniteAction = NonFiniteAction.WARN
    project: ProjectConfiguration = field(default_factory=ProjectConfiguration)
    log_with: tuple[Any, ...] = ()
    rng_types: tuple[str, ...] = (RNGType.GENERATOR.value,)
    sources: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, object, str]]:
        """List name, value and source of every setting that a user may have given."""
        values: dict[str, object] = {
            "mixed_precision": str(self.precision),
            "cpu": self.cpu,
            "device_placement": self.device_placement,
            "step_scheduler_with_optimizer": self.step_scheduler_with_optimizer,
            "nonfinite": str(self.nonfinite),
            "log_with": list(self.log_with),
            "rng_types": list(self.rng_types),
        }
        values |= _named(self.accumulation, num_steps="gradient_accumulation_steps")
        values |= _named(self.data) | _named(self.project)
        handlers = (self.ddp, self.init, self.autocast, self.scaler, self.scheduler, self.profile)
        for handler in handlers:
            name = type(handler).__name__
            values |= {f"{name}.{key}": value for key, value in handler.to_kwargs().items()}
        return [(name, value, self.sources.get(name, "default")) for name, value in values.items()]

    def file_keys(self) -> dict[str, tuple[object, bool]]:
        """Give the settings that a configuration file may hold, and whether something chose them.

        Returns
        -------
        dict
            Key of the file: value, and True if an argument or the environment gave it.
        """
        values = {
            "mixed_precision": str(self.precision),
            "gradient_accumulation_steps": self.accumulation.num_steps,
            "use_cpu": self.cpu,
        }
        names = {"use_cpu": "cpu"}
        return {key: (v, names.get(key, key) in self.sources) for key, v in values.items()}


def _named(config: Any, **other_names: str) -> dict[str, object]:
    return {other_names.get(f.name, f.name): getattr(config, f.name) for f in fields(config)}


class _Sources(dict[str, str]):
    """Notes where each setting came from, as it is decided."""

    def pick(
        self, name: str, argument: Any, env: tuple[Any, str] = (None, ""), default: Any = None
    ) -> Any:
        """Give the argument, else the environment's value (with its source), else the default."""
        value, origin = env
        if argument is not None:
            self[name] = "argument"
            return argument
        if value is not None:
            self[name] = origin
            return value
        return default

    def note(self, config: Any, source: str, **other_names: str) -> None:
        """Note that the fields of ``config`` that are not the default came from ``source``."""
        plain = type(config)()
        for f in fields(config):
            if getattr(config, f.name) != getattr(plain, f.name):
                self.setdefault(other_names.get(f.name, f.name), source)


def resolve(env: Environment, given: Arguments) -> Settings:
    """Make the settings of one Accelerator.

    Raises
    ------
    ValueError
        For a value that cannot be, or two arguments that contradict each other.
    NotImplementedError
        For an argument of a later version.
    """
    for name, instead in LATER.items():
        value = getattr(given, name)
        if value is not None and not (name == "dynamo_plugin" and _compiles_nothing(value)):
            not_yet(f"Accelerator({name}=...)", instead)
    handlers = _by_class(given.kwargs_handlers or ())
    sources = _Sources()
    if env.world_size > 1 or "WORLD_SIZE" in env.origins:
        sources["num_processes"] = env.source("WORLD_SIZE")
    for name in ("device_placement", "step_scheduler_with_optimizer"):
        if not getattr(given, name):
            sources[name] = "argument"
    for kind, handler in handlers.items():
        for key in handler.to_kwargs():
            sources[f"{kind.__name__}.{key}"] = "argument"
    return Settings(
        device_placement=given.device_placement,
        precision=_precision(given.mixed_precision, env, sources),
        cpu=sources.pick(
            "cpu",
            given.cpu or None,
            (env.use_cpu, env.source("ACCELERATE_USE_CPU")),
            default=False,
        ),
        data=_data(given.dataloader_config, given.split_batches, sources),
        accumulation=_accumulation(given, env, sources),
        step_scheduler_with_optimizer=given.step_scheduler_with_optimizer,
        ddp=_one(handlers, DistributedDataParallelKwargs),
        init=_one(handlers, InitProcessGroupKwargs),
        autocast=_one(handlers, AutocastKwargs),
        scaler=_one(handlers, GradScalerKwargs),
        scheduler=_one(handlers, SchedulerKwargs),
        profile=_one(handlers, ProfileKwargs),
        nonfinite=_nonfinite(_one(handlers, NonFiniteKwargs), env, sources),
        project=_project(given.project_dir, given.project_config, sources),
        log_with=_log_with(given.log_with, sources),
        rng_types=_rng_types(given.rng_types, sources),
        sources=sources,
    )


def resolve_precision(argument: str | None, env: Environment) -> PrecisionType:
    """Decide the precision: argument, else ``ACCELERATE_MIXED_PRECISION``, else "no".

    Raises
    ------
    ValueError
        For an unknown mode.
    NotImplementedError
        For fp8.
    """
    return _precision(argument, env, _Sources())


def _precision(argument: str | None, env: Environment, sources: _Sources) -> PrecisionType:
    variable = (env.mixed_precision, env.source("ACCELERATE_MIXED_PRECISION"))
    value = sources.pick("mixed_precision", argument, variable, default="no")
    mode = str(value).lower()
    if mode not in PrecisionType.list():
        raise ValueError(
            f"Unknown mixed_precision mode: {value}. Choose between {PrecisionType.list()}"
        )
    if mode == "fp8":
        not_yet("mixed_precision='fp8'", "use 'bf16'")
    return PrecisionType(mode)


def _compiles_nothing(plugin: Any) -> bool:
    return str(getattr(plugin, "backend", "")).lower() == "no"


def _data(
    config: DataLoaderConfiguration | None, split: bool | None, sources: _Sources
) -> DataLoaderConfiguration:
    if config is not None:
        sources.note(config, "argument dataloader_config")
    if split is None:
        return replace(config or DataLoaderConfiguration())  # a copy, checked again
    if config is not None and config.split_batches != split:
        raise ValueError(
            f"[Accelerator] split_batches={split} contradicts "
            f"dataloader_config.split_batches={config.split_batches}: give it once"
        )
    sources["split_batches"] = "argument"
    return replace(config or DataLoaderConfiguration(), split_batches=split)


def _accumulation(
    given: Arguments, env: Environment, sources: _Sources
) -> GradientAccumulationPlugin:
    plugin, steps = given.gradient_accumulation_plugin, given.gradient_accumulation_steps
    if plugin is not None:
        if steps not in (None, 1):
            raise ValueError(
                "[Accelerator] give gradient_accumulation_steps or gradient_accumulation_plugin, "
                "not both"
            )
        steps = plugin.num_steps
        sources.note(plugin, "argument gradient_accumulation_plugin", num_steps="num_steps")
        sources.pop("num_steps", None)
    # An explicit argument wins over the environment, also when it is 1.
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    steps = sources.pick(
        "gradient_accumulation_steps",
        steps,
        (env.gradient_accumulation_steps, env.source(variable)),
        default=1,
    )
    return replace(plugin or GradientAccumulationPlugin(), num_steps=steps)


def _nonfinite(handler: NonFiniteKwargs, env: Environment, sources: _Sources) -> NonFiniteAction:
    variable = (env.nonfinite, env.source("PACELINE_NONFINITE"))
    value = sources.pick("nonfinite", handler.action, variable, default="warn")
    mode = str(value).lower()
    if mode not in NonFiniteAction.list():
        raise ValueError(
            f"[Accelerator] PACELINE_NONFINITE is wrong: got {value!r}, "
            f"expected one of {NonFiniteAction.list()}"
        )
    return NonFiniteAction(mode)


def _project(
    folder: Any, config: ProjectConfiguration | None, sources: _Sources
) -> ProjectConfiguration:
    if config is not None:
        sources.note(config, "argument project_config")
    if folder is None:
        return config or ProjectConfiguration()
    if config is not None and config.project_dir not in (None, folder):
        raise ValueError(
            f"[Accelerator] project_dir={str(folder)!r} contradicts "
            f"project_config.project_dir={str(config.project_dir)!r}: give it once"
        )
    sources["project_dir"] = "argument"
    sources.setdefault("logging_dir", "argument project_dir")
    return (config or ProjectConfiguration()).in_directory(folder)


def _log_with(value: Any, sources: _Sources) -> tuple[Any, ...]:
    if value is None:
        return ()
    sources["log_with"] = "argument"
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _rng_types(types: Sequence[RNGType | str] | None, sources: _Sources) -> tuple[str, ...]:
    if types is None:
        return (RNGType.GENERATOR.value,)
    sources["rng_types"] = "argument"
    named = [types] if isinstance(types, str) else list(types)
    for name in named:
        if str(name) not in RNGType.list():
            raise ValueError(
                f"[Accelerator] rng_types is wrong: got {str(name)!r}, "
                f"expected some of {RNGType.list()}"
            )
    return tuple(str(name) for name in named)


def _by_class(handlers: Iterable[KwargsHandler]) -> dict[type[KwargsHandler], KwargsHandler]:
    found: dict[type[KwargsHandler], KwargsHandler] = {}
    for handler in handlers:
        kind = type(handler)
        if kind not in _HANDLERS:
            names = ", ".join(cls.__name__ for cls in _HANDLERS)
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
