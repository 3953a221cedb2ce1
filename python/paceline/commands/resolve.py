# SPDX-License-Identifier: Apache-2.0
"""Where a setting comes from: command line, environment, file given or project's, user's file.

Whatever cannot be done is refused here, before anything is started.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..environment import truth
from .answers import gpu_ids
from .config_file import ConfigFile, ConfigFileError, default_path, find, load
from .cores import available_cores
from .devices import Demand, DeviceError, count_gpus, plan
from .job import PRECISIONS, Settings, choose_port
from .machines import Machines, MachinesError, choose

__all__ = ["UsageError", "explain", "resolve"]


class UsageError(Exception):
    """What was asked for cannot be done; the text is shown and the exit code is 2."""


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Read the settings that people put into the environment: value and name of the variable."""
    found: dict[str, tuple[Any, str]] = {}
    # The short name too: people set it in front of every launcher.
    name = "ACCELERATE_MIXED_PRECISION"
    name = name if environ.get(name, "").strip() else "MIXED_PRECISION"
    precision = environ.get(name, "").strip().lower()
    if precision:
        if precision not in PRECISIONS:
            raise UsageError(
                f"{name} is wrong: got {precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        found["mixed_precision"] = precision, name
    for name in ("cpu", "debug"):
        variable = {"cpu": "ACCELERATE_USE_CPU", "debug": "ACCELERATE_DEBUG_MODE"}[name]
        text = environ.get(variable, "").strip().lower()
        if text:
            found[name] = truth(text), variable
            if found[name][0] is None:
                raise UsageError(f"{variable} is wrong: got {text!r}, expected true or false")
    for name, variable in (
        ("gradient_accumulation_steps", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        ("threads", "OMP_NUM_THREADS"),
    ):
        # OMP_NUM_THREADS may be a list for nested parallelism: its first number counts.
        text = environ.get(variable, "").split(",")[0].strip()
        if text:
            if not text.isdigit() or int(text) < 1:
                raise UsageError(f"{variable} is wrong: got {text!r}, expected an integer from 1")
            found[name] = int(text), variable
    return found


@dataclass(frozen=True)
class _Files:
    """The configuration files; the first one that says something wins."""

    files: Sequence[ConfigFile]

    def __bool__(self) -> bool:
        return bool(self.files)

    def get(self, key: str) -> Any:
        return next((v for file in self.files if (v := file.get(key)) is not None), None)

    def paths(self) -> list[str]:
        return [file.path for file in self.files]

    def where(self, key: str) -> str:
        return next((f.where(key) for f in self.files if f.get(key) is not None), "no file")


def _from_files(given: str | None, environ: Mapping[str, str]) -> _Files:
    files = []
    for path in find(given, environ):
        try:
            files.append(load(path))
        except ConfigFileError as error:
            raise UsageError(str(error)) from None
        except ImportError:
            raise UsageError(f"{path} cannot be read without PyYAML: pip install pyyaml") from None
    return _Files(files)


# The variable by which people give a setting, and launchers hand it on.
_VARIABLES = {
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "cpu": "ACCELERATE_USE_CPU",
    "debug": "ACCELERATE_DEBUG_MODE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "threads": "OMP_NUM_THREADS",
    "num_processes": "WORLD_SIZE",
}


class _Picker:
    """Takes a setting from the first place that says something, and notes which it was."""

    def __init__(self, file: _Files, env: Mapping[str, tuple[Any, str]]) -> None:
        self._file = file
        self._env = env
        self.sources: dict[str, str] = {}

    def __call__(
        self, name: str, given: Any, default: Any = None, file_key: str | None = None
    ) -> Any:
        variable, key = _VARIABLES.get(name, name), file_key or name
        if given not in (None, False):
            self.sources[variable] = "command line"
            return given
        if name in self._env:
            value, said = self._env[name]
            self.sources[variable] = f"environment, {said}"
            return value
        value = self._file.get(key)
        self.sources[variable] = "default" if value is None else self._file.where(key)
        return default if value is None else value


def explain(config_file: str | None, environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """List name, value and source of what `paceline launch` would use without further flags.

    Raises
    ------
    UsageError
        A file or a variable is wrong.
    """
    pick = _Picker(_from_files(config_file, environ), _from_environment(environ))
    rows = []
    for name, default, key in (
        ("num_processes", count_gpus(environ)[0] or 1, "num_processes"),
        ("mixed_precision", "no", "mixed_precision"),
        ("gradient_accumulation_steps", 1, "gradient_accumulation_steps"),
        ("cpu", False, "use_cpu"),
        ("debug", False, "debug"),
        ("threads", "cores / processes", "num_cpu_threads_per_process"),
        ("main_process_port", 0, "main_process_port"),
    ):
        value = pick(name, None, default, key)
        rows.append((key, value, pick.sources[_VARIABLES.get(name, name)]))
    return rows


def resolve(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Make the settings of a job.

    Parameters
    ----------
    args : argparse.Namespace
        The command line, None or False where it says nothing.
    environ : mapping
        The environment.

    Returns
    -------
    Settings
        What to start.

    Raises
    ------
    UsageError
        A value is wrong, or cannot be had on this machine.
    """
    file = _from_files(args.config_file, environ)
    pick = _Picker(file, _from_environment(environ))
    for flag in ("multi_gpu", "gpu_ids"):
        if args.cpu and getattr(args, flag):
            raise UsageError(f"--cpu and --{flag} contradict each other")
    cpu = bool(pick("cpu", args.cpu, False, "use_cpu"))
    by = _gpus_demanded_by(args, file)
    machines = _machines(args, pick, file, environ)
    demand = Demand(
        _here(args, pick("num_processes", args.num_processes), machines.count),
        cpu,
        by,
        args.gpu_ids or (_file_gpu_ids(file) if by else None),
    )
    try:
        devices = plan(demand, environ)
    except DeviceError as error:
        raise UsageError(str(error)) from None
    _remark(args, devices.remark)
    threads = args.num_cpu_threads_per_process
    return Settings(
        num_processes=devices.num_processes,
        machines=machines,
        gpu_ids=devices.visible,
        max_restarts=args.max_restarts,
        mixed_precision=pick("mixed_precision", args.mixed_precision, "no"),
        cpu=cpu,
        threads=pick("threads", threads, None, "num_cpu_threads_per_process"),
        port=machines.port if machines.count > 1 else _port(args, machines.port),
        gradient_accumulation_steps=pick(
            "gradient_accumulation_steps", args.gradient_accumulation_steps
        ),
        debug=bool(pick("debug", args.debug, False)),
        sources=pick.sources,
    )


def _machines(
    args: argparse.Namespace, pick: _Picker, file: _Files, environ: Mapping[str, str]
) -> Machines:
    names = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
    folders = [os.path.dirname(path) for path in (*file.paths(), default_path(environ))]
    try:
        return choose(pick, {name: getattr(args, name) for name in names}, folders, environ)
    except MachinesError as error:
        raise UsageError(str(error)) from None


def _here(args: argparse.Namespace, everywhere: int | None, machines: int) -> int | None:
    """Give the number of processes of this machine, from either way to say it."""
    each = args.nproc_per_node
    if each is not None and args.num_processes is not None:
        raise UsageError("--num_processes and --nproc_per_node contradict each other: give one")
    if each == "cpu":
        return len(available_cores())
    if isinstance(each, int):
        return each
    if everywhere is None or each is not None:
        return None
    if everywhere % machines:
        raise UsageError(
            f"num_processes is wrong: got {everywhere} over {machines} machines, expected a "
            "multiple of their number (it counts all machines together)"
        )
    return everywhere // machines


def _gpus_demanded_by(args: argparse.Namespace, file: _Files) -> str:
    for flag in ("multi_gpu", "gpu_ids"):
        if getattr(args, flag):
            return f"--{flag}"
    if args.nproc_per_node == "gpu":
        return "--nproc_per_node gpu"
    if file.get("distributed_type") == "MULTI_GPU":
        return f"distributed_type: MULTI_GPU ({file.where('distributed_type')})"
    return ""


def _file_gpu_ids(file: _Files) -> str | None:
    value = file.get("gpu_ids")
    return None if value is None else gpu_ids(str(value))


def _remark(args: argparse.Namespace, text: str) -> None:
    if text and not (args.quiet or args.no_python):
        print(f"paceline launch: {text}", file=sys.stderr)


def _port(args: argparse.Namespace, asked: int) -> int:
    chosen = choose_port(asked)
    if asked not in (0, chosen):
        _remark(args, f"port {asked} is in use, took {chosen}")
    return chosen
