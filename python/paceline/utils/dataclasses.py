# SPDX-License-Identifier: Apache-2.0
"""Configuration objects, under the names and with the fields that Accelerate gives them.

All check themselves when made, and are frozen but for ``DataLoaderConfiguration``, whose fields
libraries set one by one; an Accelerator keeps a copy. They know no tensor and no process group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields, replace
from datetime import timedelta
from typing import Any, NoReturn

from .enums import (
    DDPCommunicationHookType,
    DistributedType,
    LoggerType,
    NonFiniteAction,
    PrecisionType,
    RNGType,
)

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
    "NonFiniteAction",
    "NonFiniteKwargs",
    "PrecisionType",
    "ProfileKwargs",
    "ProjectConfiguration",
    "RNGType",
    "SchedulerKwargs",
    "not_yet",
]


def not_yet(what: str, instead: str) -> NoReturn:
    """Refuse a documented option that this version does not have.

    Raises
    ------
    NotImplementedError
        Always: an option that does nothing would be worse than none.
    """
    raise NotImplementedError(f"{what} is not built yet; {instead}")


def _check(config: object, field: str, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(
            f"[{type(config).__name__}] {field} is wrong: got {getattr(config, field)!r}, "
            f"expected {expected}"
        )


class KwargsHandler:
    """Base of the objects that ``Accelerator(kwargs_handlers=[...])`` takes."""

    def to_kwargs(self) -> dict[str, Any]:
        """Give the fields whose value is not the default."""
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            default = field.default
            if default is MISSING and field.default_factory is not MISSING:
                default = field.default_factory()
            value = getattr(self, field.name)
            if value != default:
                changed[field.name] = value
        return changed


@dataclass(frozen=True)
class AutocastKwargs(KwargsHandler):
    """Options of ``Accelerator.autocast``.

    Parameters
    ----------
    enabled : bool
        False computes in full precision inside the block.
    cache_enabled : bool, optional
        Whether a weight is cast once per step; None and True mean yes.
    """

    enabled: bool = True
    cache_enabled: bool | None = None

    def __post_init__(self) -> None:
        if self.cache_enabled is False:
            not_yet("AutocastKwargs(cache_enabled=False)", "leave it out: a weight is cast once")


@dataclass(frozen=True)
class GradScalerKwargs(KwargsHandler):
    """How fp16 losses are scaled. Names and defaults are ``torch.amp.GradScaler``'s.

    Parameters
    ----------
    init_scale : float
        First factor of the loss.
    growth_factor : float
        By how much the factor grows after ``growth_interval`` finite steps.
    backoff_factor : float
        By how much it shrinks after a step whose gradients overflowed.
    growth_interval : int
        Finite steps between two growths.
    enabled : bool
        False scales nothing.
    """

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    enabled: bool = True

    def __post_init__(self) -> None:
        _check(self, "init_scale", self.init_scale > 0, "a positive number")
        _check(self, "growth_factor", self.growth_factor > 1, "more than 1")
        _check(self, "backoff_factor", 0 < self.backoff_factor < 1, "between 0 and 1")
        whole = isinstance(self.growth_interval, int) and self.growth_interval >= 1
        _check(self, "growth_interval", whole, "an integer of at least 1")
        _check(self, "init_scale", math.isfinite(self.init_scale), "a finite number")


@dataclass(frozen=True)
class SchedulerKwargs(KwargsHandler):
    """How prepared schedulers advance. Not in Accelerate.

    Parameters
    ----------
    step_per_process : bool
        True: one call of ``step`` advances a schedule once per process, as in Accelerate, which
        fits a length counted in batches of one process. False: once per optimizer step, which
        fits a length computed from the prepared loader.
    """

    step_per_process: bool = True


@dataclass(frozen=True)
class NonFiniteKwargs(KwargsHandler):
    """What happens when a loss or a gradient is NaN or infinite. Not in Accelerate.

    Parameters
    ----------
    action : {"warn", "raise", "skip", "off"}
        ``"warn"``: one line with rank and first parameter. ``"raise"``: an error on all ranks.
        ``"skip"``: that step is left out on all ranks together. ``"off"``: nothing looks. None:
        ``PACELINE_NONFINITE``, else ``"warn"``.
    """

    action: str | None = None

    def __post_init__(self) -> None:
        known = self.action is None or self.action in NonFiniteAction.list()
        _check(self, "action", known, f"one of {NonFiniteAction.list()}")


@dataclass(frozen=True)
class ProfileKwargs(KwargsHandler):
    """What ``Accelerator.profile`` records.

    Parameters
    ----------
    activities : sequence of str, optional
        ``"cpu"``, and ``"cuda"`` beside it; None records all there is.
    schedule_option : mapping, optional
        ``wait``, ``warmup``, ``active``, and ``repeat``, ``skip_first``: steps of each phase.
    on_trace_ready : callable, optional
        Called with the profiler whenever a trace is whole.
    record_shapes : bool
        Keep the shapes of operators' inputs.
    profile_memory, with_stack, with_flops, with_modules : bool
        Only False.
    output_trace_dir : str, optional
        Folder for ``profile_{rank}.json`` and, of all ranks, ``profile.json``.
    """

    activities: Sequence[str] | None = None
    schedule_option: Mapping[str, int] | None = None
    on_trace_ready: Callable[..., Any] | None = None
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False
    with_flops: bool = False
    with_modules: bool = False
    output_trace_dir: str | None = None

    def __post_init__(self) -> None:
        for name in self.activities or ():
            _check(self, "activities", name in ("cpu", "cuda"), "only 'cpu' and 'cuda'")
        keys = {"wait", "warmup", "active", "repeat", "skip_first"}
        strange = set(self.schedule_option or ()) - keys
        _check(self, "schedule_option", not strange, f"only {sorted(keys)}")
        for name in _PROFILE_LATER:
            if getattr(self, name):
                not_yet(f"ProfileKwargs({name}=True)", "leave it out")

    def build(self) -> Any:
        """Make the profiler that these options ask for, a context; see ``paceline.profiler``."""
        from ..profiler.ranks import build
        from ..state import PartialState

        return build(self, PartialState().process_index if PartialState.is_initialized() else 0)


# Options of ProfileKwargs that the profiler cannot honour yet.
_PROFILE_LATER = ("profile_memory", "with_stack", "with_flops", "with_modules")


@dataclass(frozen=True)
class DistributedDataParallelKwargs(KwargsHandler):
    """How gradients are synchronised. Names and defaults are DistributedDataParallel's.

    Parameters
    ----------
    dim : int
        Only 0.
    broadcast_buffers : bool
        Copy rank 0's floating-point buffers to all ranks before each forward pass in training
        mode whose gradients will be synchronised.
    bucket_cap_mb : float
        Size of a gradient bucket in MiB, at most. The first bucket holds at most 1 MiB, so that
        the reduction starts early; a model of up to 4 MiB has one bucket. Where all ranks are on
        one machine and compute on its processors 2 MiB are the most (1/512 of all gradients if
        that is more): such a bucket is reduced while it is still in the cache.
    find_unused_parameters, gradient_as_bucket_view, static_graph : bool
        Accepted and without effect: a parameter that was not used never hangs here, gradients
        always live in the buckets, and the graph may change.
    check_reduction : bool
        Accepted and without effect.
    """

    dim: int = 0
    broadcast_buffers: bool = True
    bucket_cap_mb: float = 25
    find_unused_parameters: bool = False
    check_reduction: bool = False
    gradient_as_bucket_view: bool = False
    static_graph: bool = False
    comm_hook: Any = "no"
    comm_wrapper: Any = "no"
    comm_state_option: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.dim != 0:
            not_yet(f"DistributedDataParallelKwargs(dim={self.dim})", "use dim=0")
        if not self.bucket_cap_mb > 0:
            raise ValueError(
                "[DistributedDataParallelKwargs] bucket_cap_mb must be positive: "
                f"got {self.bucket_cap_mb}"
            )
        for name in ("comm_hook", "comm_wrapper"):
            if str(getattr(self, name)).lower() != "no":
                not_yet(f"DistributedDataParallelKwargs({name}=...)", "leave it out")
        if self.comm_state_option:
            not_yet("DistributedDataParallelKwargs(comm_state_option=...)", "leave it out")


@dataclass(frozen=True)
class InitProcessGroupKwargs(KwargsHandler):
    """How the process group is formed.

    Parameters
    ----------
    backend : str, optional
        Accepted; the transport is chosen by where the ranks are.
    init_method : str, optional
        Only None or ``env://``: the rendezvous is read from the environment.
    timeout : datetime.timedelta, optional
        How long a collective may wait; None means 600 seconds.
    """

    backend: str | None = "nccl"
    init_method: str | None = None
    timeout: timedelta | None = None

    def __post_init__(self) -> None:
        if self.init_method not in (None, "env://"):
            not_yet(
                f"InitProcessGroupKwargs(init_method={self.init_method!r})",
                "set MASTER_ADDR and MASTER_PORT, or use `paceline launch`",
            )
        if self.timeout is not None and self.timeout <= timedelta(0):
            raise ValueError(
                f"[InitProcessGroupKwargs] timeout must be positive: got {self.timeout}"
            )


@dataclass(frozen=True)
class GradientAccumulationPlugin(KwargsHandler):
    """How ``Accelerator.accumulate`` counts.

    Parameters
    ----------
    num_steps : int, optional
        Batches per optimizer step; None: ``ACCELERATE_GRADIENT_ACCUMULATION_STEPS``, else 1.
    adjust_scheduler : bool
        Whether a prepared scheduler counts the calls that accumulation skips.
    sync_with_dataloader : bool
        Step at the last batch of a loader, even if the window is not full.
    sync_each_batch : bool
        Reduce gradients at every batch; the optimizer still steps at the end of the window.
    scale_last_window : bool
        True divides the gradients of the last, shorter window by its true length; False divides
        them by ``num_steps``, as Accelerate does, which makes that step too small.
    """

    num_steps: int | None = None
    adjust_scheduler: bool = True
    sync_with_dataloader: bool = True
    sync_each_batch: bool = False
    scale_last_window: bool = True

    def __post_init__(self) -> None:
        steps = self.num_steps
        whole = steps is None or (type(steps) is int and steps >= 1)
        _check(self, "num_steps", whole, "an integer of at least 1")


@dataclass(frozen=True)
class ProjectConfiguration:
    """Where a run writes. What changes while it runs is the Accelerator's: ``save_iteration``.

    Parameters
    ----------
    project_dir : path, optional
        Folder of checkpoints.
    logging_dir : path, optional
        Folder of the trackers' logs; by default ``project_dir``.
    automatic_checkpoint_naming : bool
        ``save_state()`` chooses ``checkpoints/checkpoint_<n>`` below ``project_dir``.
    total_limit : int, optional
        How many checkpoints are kept; the oldest goes after the new one is whole.
    iteration : int
        Number of the next checkpoint.
    save_on_each_node : bool
        Write on the first process of each machine and not only on rank 0.
    """

    project_dir: str | os.PathLike[str] | None = None
    logging_dir: str | os.PathLike[str] | None = None
    automatic_checkpoint_naming: bool = False
    total_limit: int | None = None
    iteration: int = 0
    save_on_each_node: bool = False

    def __post_init__(self) -> None:
        if self.logging_dir is None:
            object.__setattr__(self, "logging_dir", self.project_dir)
        limit, at = self.total_limit, self.iteration
        _check(
            self,
            "total_limit",
            limit is None or (type(limit) is int and limit >= 1),
            "an integer of at least 1",
        )
        _check(self, "iteration", type(at) is int and at >= 0, "an integer of at least 0")

    def set_directories(self, project_dir: object = None) -> NoReturn:
        """Refuse: configurations are frozen; see ``in_directory``."""
        raise FrozenInstanceError(
            "[ProjectConfiguration] set_directories: configurations are frozen; give project_dir "
            "to Accelerator(), or use the copy that in_directory(project_dir) returns"
        )

    def in_directory(self, project_dir: str | os.PathLike[str] | None) -> ProjectConfiguration:
        """Give this configuration for another folder, that of the logs included if it has none."""
        own_logs = self.logging_dir != self.project_dir
        logs = self.logging_dir if own_logs else project_dir
        return replace(self, project_dir=project_dir, logging_dir=logs)


@dataclass
class DataLoaderConfiguration:
    """How ``prepare`` shares a data loader between the processes.

    Parameters
    ----------
    split_batches : bool
        False: the loader's batch size is that of one process. True: it is that of all processes
        together, and must be a multiple of their number.
    dispatch_batches : bool, optional
        True: rank 0 reads for all. False: every process reads its own batches. None: False for
        data with a length, True for a stream.
    even_batches : bool
        Complete the last round with samples from the start, so that all processes have the same
        number of full batches. ``gather_for_metrics`` drops the repeated samples.
    use_seedable_sampler : bool
        True, the default here, shuffles from a seed of rank 0 plus the epoch: a run is
        repeatable and all processes agree. False draws the order of each epoch from rank 0's
        random generator instead.
    data_seed : int, optional
        Seed of the shuffle; by default the seed of rank 0's random generator.
    non_blocking : bool
        Copies to a device do not wait.
    use_stateful_dataloader : bool
        Loaders keep ``state_dict`` and ``load_state_dict``; here they always do.
    shard : {"batches", "samples"}
        ``"batches"``: rank r takes batches r, r + N, ... (Accelerate's rule). ``"samples"``: rank
        r takes samples r, r + N, ... (that of DistributedSampler), then batches them.
    """

    split_batches: bool = False
    dispatch_batches: bool | None = None
    even_batches: bool = True
    use_seedable_sampler: bool = True
    data_seed: int | None = None
    non_blocking: bool = False
    use_stateful_dataloader: bool = False
    shard: str = "batches"

    def __post_init__(self) -> None:
        if self.shard not in ("batches", "samples"):
            raise ValueError(
                "[DataLoaderConfiguration] shard is not known: "
                f"got {self.shard!r}, expected 'batches' or 'samples'"
            )
        if self.shard == "samples" and self.split_batches:
            raise ValueError(
                "[DataLoaderConfiguration] split_batches shares batches out: "
                "it goes with shard='batches' only"
            )
