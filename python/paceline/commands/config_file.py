# SPDX-License-Identifier: Apache-2.0
"""Reads Accelerate's configuration file, strictly: a key that has no effect is an error.

The file comes from people, so every complaint names file, line and column, what was found and
what was expected. No tags, no aliases, no constructors: nodes are read as plain text by type.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import gpu_ids

__all__ = ["PROJECT_FILE", "ConfigFile", "ConfigFileError", "default_path", "dump", "find", "load"]

#: The project's file, in the folder where a command is given.
PROJECT_FILE = "paceline.yaml"

_BYTES_MAX = 1 << 20
_DEPTH_MAX = 32
_PRECISIONS = ("no", "fp16", "bf16")
_TYPES_LATER = {
    "DEEPSPEED": "sharded optimizers",
    "FSDP": "sharded parameters",
    "MEGATRON_LM": "tensor parallelism",
}
_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU")


class ConfigFileError(ValueError):
    """The configuration file cannot be used; the text says where and why."""


@dataclass(frozen=True)
class ConfigFile:
    """What the launcher heeds of a configuration file; None where it says nothing.

    Attributes
    ----------
    path : str
        The file.
    values : mapping
        Its keys that have a meaning here, checked.
    lines : mapping
        Line number of each key.
    """

    path: str
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """Give the value of a key, None if the file does not have it."""
        return self.values.get(key)

    def where(self, key: str) -> str:
        """Say where a key stands, ``path:line``."""
        return f"{self.path}:{self.lines.get(key, 1)}"


def default_path(environ: Mapping[str, str] | None = None) -> str:
    """Give the place of the file that is read when none is named; it may not exist."""
    env = os.environ if environ is None else environ
    home = env.get("HF_HOME")
    if not home:
        home = os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return os.path.join(os.path.expanduser(home), "accelerate", "default_config.yaml")


def find(given: str | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    """List the files that are read, first the one that wins.

    A file that was named stands alone, as in Accelerate: what it leaves out is the default.

    Parameters
    ----------
    given : str, optional
        A file that was named.
    environ : mapping, optional
        The environment, which tells the user's folder.
    """
    if given is not None:
        return [given]
    return [path for path in (PROJECT_FILE, default_path(environ)) if os.path.isfile(path)]


# --- what each key may hold -----------------------------------------------------------------------


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _at_least(low: int, high: int | None = None) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("an integer")
        if value < low or (high is not None and value > high):
            raise ValueError(
                f"at least {low}" if high is None else f"an integer from {low} to {high}"
            )
        return value

    return check


def _precision(value: Any) -> str:
    value = "no" if value is False else value  # YAML reads a bare `no` as false
    if value in _PRECISIONS:
        return str(value)
    raise ValueError(f"one of {', '.join(_PRECISIONS)}" + (" (fp8: later)" * (value == "fp8")))


def _distributed_type(value: Any) -> str:
    value = "NO" if value is False else value
    if value in _TYPES:
        return str(value)
    if value in _TYPES_LATER:
        raise ValueError(
            f"one of {', '.join(_TYPES)}; {value} needs {_TYPES_LATER[value]}, "
            "which this version does not have yet"
        )
    raise ValueError(f"one of {', '.join(_TYPES)}")


def _only(expected: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value != expected or type(value) is not type(expected):
            raise ValueError(f"{expected}: this version does nothing else")
        return value

    return check


def _empty(value: Any) -> None:
    if value not in ({}, [], None):
        raise ValueError("nothing: this version does not have that yet")


def _gpu_ids(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("`all`, or numbers such as '4,5'")
    return gpu_ids(str(value))


def _anything(value: Any) -> Any:
    return value


# Every key that Accelerate writes. Null means "not said" for each of them.
_KEYS: dict[str, Callable[[Any], Any]] = {
    "compute_environment": _only("LOCAL_MACHINE"),
    "distributed_type": _distributed_type,
    "mixed_precision": _precision,
    "use_cpu": _boolean,
    "debug": _boolean,
    "num_processes": _at_least(1),
    "num_machines": _at_least(1),
    "machine_rank": _at_least(0),
    "main_process_port": _at_least(0, 65535),
    "gradient_accumulation_steps": _at_least(1),
    "num_cpu_threads_per_process": _at_least(1),
    # Without a meaning on one machine without GPUs; whatever stands there changes nothing.
    "main_process_ip": _anything,
    "gpu_ids": _gpu_ids,
    "rdzv_backend": _anything,
    "same_network": _anything,
    "main_training_function": _anything,
    "enable_cpu_affinity": _anything,
    "downcast_bf16": _anything,
    "tpu_env": _empty,
    "tpu_name": _empty,
    "tpu_zone": _empty,
    "tpu_use_cluster": _only(False),
    "tpu_use_sudo": _only(False),
    "commands": _empty,
    "command_file": _empty,
    "dynamo_config": _empty,
    "deepspeed_config": _empty,
    "fsdp_config": _empty,
    "fp8_config": _empty,
    "megatron_lm_config": _empty,
    "mpirun_config": _empty,
    "parallelism_config": _empty,
}


# --- reading --------------------------------------------------------------------------------------


class _Reader:
    """Turns YAML nodes into plain values; complains with line and column."""

    def __init__(self, path: str) -> None:
        import yaml

        self._yaml = yaml
        self._loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._path = path

    def fail(self, mark: Any, text: str) -> ConfigFileError:
        place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        return ConfigFileError(f"{self._path}{place}: {text}")

    def tree(self, text: str) -> Any:
        """Parse into nodes, after a look at every event for what is not allowed."""
        yaml = self._yaml
        depth = 0
        try:
            for event in yaml.parse(text, Loader=self._loader):
                start = isinstance(event, yaml.CollectionStartEvent)
                depth += start - isinstance(event, yaml.CollectionEndEvent)
                if depth > _DEPTH_MAX:
                    raise self.fail(event.start_mark, f"nested deeper than {_DEPTH_MAX} levels")
                if getattr(event, "anchor", None) is not None:
                    raise self.fail(event.start_mark, "anchors and aliases are not allowed")
                if getattr(event, "tag", None) is not None:
                    raise self.fail(event.start_mark, f"tags are not allowed: got {event.tag}")
            return yaml.compose(text, Loader=self._loader)
        except yaml.MarkedYAMLError as error:
            problem = error.problem or error.context or "cannot be read"
            raise self.fail(
                error.problem_mark or error.context_mark, f"not valid YAML: {problem}"
            ) from None
        except yaml.YAMLError as error:
            raise self.fail(None, f"not valid YAML: {str(error).splitlines()[0]}") from None

    def plain(self, node: Any) -> Any:
        """Turn a node into dict, list, str, int, float, bool or None."""
        yaml = self._yaml
        if isinstance(node, yaml.MappingNode):
            return {key: self.plain(value) for key, (value, _) in self.pairs(node).items()}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item) for item in node.value]
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise self.fail(node.start_mark, f"a value cannot be read: {line}") from None

    def pairs(self, node: Any) -> dict[str, tuple[Any, Any]]:
        """List the keys of a mapping node, with value node and place; each only once."""
        found: dict[str, tuple[Any, Any]] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, self._yaml.ScalarNode) else None
            if key is None:
                raise self.fail(key_node.start_mark, "a key must be a word")
            if key in found:
                first = found[key][1].line + 1
                raise self.fail(key_node.start_mark, f"{key} stands here and in line {first}")
            found[key] = value_node, key_node.start_mark
        return found


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigFileError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > _BYTES_MAX:
        raise ConfigFileError(f"{path}: larger than 1 MiB, so not a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigFileError(f"{path}:{line}: not UTF-8 text") from None


def load(path: str) -> ConfigFile:
    """Read a configuration file, YAML or JSON.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    ConfigFile
        The values in it that mean something here.

    Raises
    ------
    ConfigFileError
        The file cannot be read, or has a key or a value that it must not have.
    """
    text = _read(path)
    reader = _Reader(path)
    root = reader.tree(text)
    if root is None:
        raise ConfigFileError(f"{path}: the file is empty: expected lines such as num_processes: 2")
    try:
        pairs = reader.pairs(root)
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigFileError):
            raise
        raise reader.fail(
            root.start_mark, "expected lines of the form `key: value`, such as num_processes: 2"
        ) from None
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, (node, mark) in pairs.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove the line"
            raise reader.fail(mark, f"unknown key {key!r}: {hint}")
        value = reader.plain(node)
        lines[key] = mark.line + 1
        if value is None:
            continue
        try:
            values[key] = _KEYS[key](value)
        except ValueError as error:
            got = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
            raise reader.fail(
                node.start_mark, f"{key} is wrong: got {got}, expected {error}"
            ) from None
    return ConfigFile(path, values, lines)


def dump(values: Mapping[str, Any], as_json: bool = False) -> str:
    """Give the text of a configuration file, as Accelerate would write it.

    Parameters
    ----------
    values : mapping
        Keys and values.
    as_json : bool
        JSON instead of YAML.
    """
    if as_json:
        import json

        return json.dumps(dict(values), indent=2, sort_keys=True) + "\n"
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=True, allow_unicode=True))
