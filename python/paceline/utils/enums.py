# SPDX-License-Identifier: Apache-2.0
"""What an option may be: enums whose members are strings, under Accelerate's names."""

from __future__ import annotations

import enum
from collections.abc import Sequence

__all__ = [
    "DDPCommunicationHookType",
    "DistributedType",
    "LoggerType",
    "NonFiniteAction",
    "PrecisionType",
    "RNGType",
]


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


class RNGType(_NamedEnum):
    """What ``rng_types`` may hold: random generators that rank 0 hands to all each epoch."""

    TORCH = "torch"
    CUDA = "cuda"
    GENERATOR = "generator"


class LoggerType(_NamedEnum):
    """Trackers that ``log_with`` may name."""

    ALL = "all"
    AIM = "aim"
    TENSORBOARD = "tensorboard"
    CSV = "csv"
    JSONL = "jsonl"
    WANDB = "wandb"
    TRACKIO = "trackio"
    COMETML = "comet_ml"
    MLFLOW = "mlflow"
    CLEARML = "clearml"
    DVCLIVE = "dvclive"
    SWANLAB = "swanlab"


class DDPCommunicationHookType(_NamedEnum):
    """How gradients travel: only as they are, for now."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"
    POWER_SGD = "power_sgd"
    BATCHED_POWER_SGD = "batched_power_sgd"


class NonFiniteAction(_NamedEnum):
    """What to do when a loss or a gradient is NaN or infinite."""

    WARN = "warn"
    RAISE = "raise"
    SKIP = "skip"
    OFF = "off"
