# SPDX-License-Identifier: Apache-2.0
"""Configuration objects, under the names and with the fields that Accelerate gives them.

All are frozen and check themselves when made. They know no tensor and no process group.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from typing import Any, NoReturn

__all__ = [
    "AutocastKwargs",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "DistributedType",
    "GradientAccumulationPlugin",
    "InitProcessGroupKwargs",
    "KwargsHandler",
    "PrecisionType",
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


class _NamedEnum(enum.StrEnum):
    """An enum whose members are strings and print as such."""

    @classmethod
    def list(cls) -> Sequence[str]:
        """Give all values."""
        return [str(member.value) for member in cls]


class DistributedType(_NamedEnum):
    """How the processes of this run work together."""

    NO = "NO"
    MULTI_CPU = "MULTI_CPU"
    MULTI_GPU = "MULTI_GPU"
    DEEPSPEED = "DEEPSPEED"
    FSDP = "FSDP"
    XLA = "XLA"
    MEGATRON_LM = "MEGATRON_LM"


class PrecisionType(_NamedEnum):
    """What ``mixed_precision`` may be."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"


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
        Size of a gradient bucket in MiB. The first bucket holds at most 1 MiB, so that the
        reduction starts early.
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
    num_steps : int
        Batches per optimizer step.
    adjust_scheduler : bool
        Whether a prepared scheduler counts the calls that accumulation skips.
    sync_with_dataloader : bool
        Step at the last batch of a loader, even if the window is not full.
    sync_each_batch : bool
        Reduce gradients at every batch; the optimizer still steps at the end of the window.
    """

    num_steps: int = 1
    adjust_scheduler: bool = True
    sync_with_dataloader: bool = True
    sync_each_batch: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(
                "[GradientAccumulationPlugin] num_steps must be an integer of at least 1: "
                f"got {self.num_steps!r}"
            )


@dataclass(frozen=True)
class DataLoaderConfiguration:
    """How ``prepare`` shares a data loader between the processes.

    Parameters
    ----------
    split_batches : bool
        False: the loader's batch size is that of one process. True: it is that of all processes
        together, and must be a multiple of their number.
    dispatch_batches : bool, optional
        Only None or False: every process reads its own batches.
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
        Not built yet.
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
        if self.dispatch_batches:
            not_yet("DataLoaderConfiguration(dispatch_batches=True)", "leave it out")
        if self.use_stateful_dataloader:
            not_yet("DataLoaderConfiguration(use_stateful_dataloader=True)", "leave it out")
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
