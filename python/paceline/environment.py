# SPDX-License-Identifier: Apache-2.0
"""The environment variables that an Accelerator heeds, read in this one place, never written.

``docs/env_vars.md`` lists them. A launcher that took a value from its command line or from a file
hands it on as a variable, and says in ``PACELINE_SETTING_SOURCES`` where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ConfigError

__all__ = ["SOURCES", "Environment", "read_environment", "read_log_level", "truth"]

#: JSON: ``[[variable, [value, source]], ...]``. It holds for a variable while that has this value.
SOURCES = "PACELINE_SETTING_SOURCES"

_YES = ("1", "true", "yes", "y", "on", "t")
_NO = ("0", "false", "no", "n", "off", "f")


@dataclass(frozen=True)
class Environment:
    """What the launcher, or the user, told this process; None where a variable is not set."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    mixed_precision: str | None = None
    gradient_accumulation_steps: int | None = None
    use_cpu: bool | None = None
    debug: bool = False
    fork_launched: bool = False
    log_level: str | None = None
    nonfinite: str | None = None
    report_file: str | None = None
    torch_distributed: bool = False
    launched: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)

    def source(self, variable: str) -> str:
        """Say where the value of a variable came from."""
        return self.origins.get(variable, f"environment, {variable}")


def _integer(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"[environment] {name} is wrong: got {text!r}, expected an integer of at least 1"
        )
    return int(text)


def truth(text: str) -> bool | None:
    """Read a yes or no, in any case and with blanks around; None for any other word."""
    word = text.strip().lower()
    return word in _YES if word in _YES + _NO else None


def _flag(name: str) -> bool | None:
    text = os.environ.get(name, "").strip()
    answer = truth(text)
    if text and answer is None:
        raise ConfigError(f"[environment] {name} is wrong: got {text!r}, expected true or false")
    return answer


def _origins() -> dict[str, str]:
    text = os.environ.get(SOURCES, "").strip()
    if not text:
        return {}
    import json

    try:
        said = {str(name): (str(value), str(origin)) for name, (value, origin) in json.loads(text)}
    except (ValueError, TypeError):
        raise ConfigError(
            f"[environment] {SOURCES} is wrong: got {text[:60]!r}, expected a JSON list of "
            "[variable, [value, source]]; only launchers set it"
        ) from None
    return {name: origin for name, (value, origin) in said.items() if os.environ.get(name) == value}


def read_environment() -> Environment:
    """Read every environment variable that an Accelerator heeds, once, in one place.

    Returns
    -------
    Environment
        The values; None where a variable is not set.

    Raises
    ------
    ConfigError
        When a variable does not parse, or RANK and WORLD_SIZE contradict each other.
    """
    from .distributed.environment import read_job

    job = read_job()
    return Environment(
        rank=job.rank,
        world_size=job.world,
        local_rank=job.local_rank,
        local_world_size=job.local_world,
        # The short name too: people set it in front of every launcher.
        mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION")
        or os.environ.get("MIXED_PRECISION")
        or None,
        gradient_accumulation_steps=_integer("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        use_cpu=_flag("ACCELERATE_USE_CPU"),
        debug=bool(_flag("ACCELERATE_DEBUG_MODE")),
        fork_launched=bool(_flag("FORK_LAUNCHED")),
        log_level=read_log_level(),
        nonfinite=os.environ.get("PACELINE_NONFINITE") or None,
        report_file=os.environ.get("PACELINE_REPORT_FILE") or None,
        torch_distributed=bool(_flag("PACELINE_TORCH_DISTRIBUTED")),
        launched=SOURCES in os.environ,
        origins=_origins(),
    )


def read_log_level() -> str | None:
    """Read the one variable that loggers need before there is a job to speak of."""
    return os.environ.get("ACCELERATE_LOG_LEVEL") or None
