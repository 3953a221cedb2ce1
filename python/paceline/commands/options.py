# SPDX-License-Identifier: Apache-2.0
"""The command line of ``paceline launch``: Accelerate's flags, torchrun's spellings beside them.

What a flag means is decided elsewhere (``resolve.py``); what this version does not have is refused
by its name.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from .job import PRECISIONS
from .resolve import UsageError

__all__ = ["parse"]

# Flags of Accelerate's launcher and of torchrun that stand for what is not built.
_FLAGS_LATER = (
    "use_deepspeed zero_stage offload_optimizer_device offload_param_device gradient_clipping "
    "deepspeed_config_file deepspeed_hostfile deepspeed_multinode_launcher zero3_init_flag "
    "zero3_save_16bit_model use_fsdp fsdp_version fsdp_offload_params fsdp_min_num_params "
    "fsdp_sharding_strategy fsdp_auto_wrap_policy fsdp_transformer_layer_cls_to_wrap "
    "fsdp_state_dict_type use_megatron_lm use_parallelism_config tpu tpu_cluster use_xpu "
    "mpirun_hostfile dynamo_mode fp8_backend"
).split()
# Accepted, since scripts of the field pass them, and without anything to set here.
_NOTHING_TO_SET = (
    "same_network rdzv_backend rdzv_conf rdzv_endpoint rdzv_id role monitor_interval "
    "enable_cpu_affinity main_training_function downcast_bf16"
).split()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`paceline launch --help` lists the options)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """One spelling of each option: that `-` and `_` are the same is said once, below."""

    def __init__(self, prog: str) -> None:
        # A width of its own: asking the terminal for one loads a module at every start.
        super().__init__(prog, max_help_position=34, width=96)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [n for n in action.option_strings if "-" not in n.lstrip("-")]
        value = f" {self._format_args(action, action.dest.upper())}" if action.nargs != 0 else ""
        return ", ".join(names) + value


def _integer(low: int, high: int | None = None) -> Any:
    expected = f"an integer of at least {low}" if high is None else f"{low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def _nnodes(text: str) -> int:
    low, _, high = text.partition(":")  # torchrun's MIN:MAX; there is no growing and shrinking
    if high not in ("", low):
        raise argparse.ArgumentTypeError(f"expected one number of machines, got {text!r}")
    return int(_integer(1)(low))


def _per_machine(text: str) -> int | str:
    return text if text in ("auto", "cpu", "gpu") else int(_integer(1)(text))


def _tee(text: str) -> dict[int, int]:
    """Read torchrun's way to say which streams: ``3``, or ``0:3,1:2`` by rank; -1 is all ranks."""
    chosen: dict[int, int] = {}
    for part in text.split(","):
        rank, colon, stream = part.rpartition(":")
        if stream not in ("0", "1", "2", "3") or (colon and not rank.isdecimal()):
            raise argparse.ArgumentTypeError(
                "expected 1 (stdout), 2 (stderr), 3 (both), or such by rank as in 0:3,1:2; "
                f"got {text!r}"
            )
        chosen[int(rank) if colon else -1] = int(stream)
    return chosen


def _gpu_ids(text: str) -> str:
    from .answers import gpu_ids

    try:
        return gpu_ids(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {error}, got {text!r}") from None


def _flag(group: Any, name: str, *other: str, **how: Any) -> None:
    """Add a flag in both spellings, and under its other names."""
    both = [f"--{form}" for n in (name, *other) if n[0] != "-" for form in (n, n.replace("_", "-"))]
    short = [n for n in other if n[0] == "-"]
    group.add_argument(*short, *dict.fromkeys(both), dest=name, **how)


def _what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to run")
    group.add_argument("script", help="a script, or with -m a module")
    group.add_argument("script_args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    _flag(group, "module", "-m", action="store_true", help="run a module, as `python -m` does")
    help_ = "`import accelerate` in the script gives paceline (paceline.compat)"
    _flag(group, "as_accelerate", action="store_true", help=help_)
    help_ = "run a program that is not a Python script"
    _flag(group, "no_python", action="store_true", help=help_)


def _where(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where")
    count = "processes of all machines together (default: the visible GPUs, else 1)"
    _flag(group, "num_processes", "-n", type=_integer(1), metavar="N", help=count)
    _flag(group, "cpu", action="store_true", help="keep to the CPU, whatever the file says")
    _flag(group, "multi_gpu", action="store_true", help="demand one GPU per process")
    ids = "demand these GPUs, such as 0,1; or all"
    _flag(group, "gpu_ids", type=_gpu_ids, metavar="IDS", help=ids)
    threads = "threads per process (default: cores / processes)"
    _flag(group, "num_cpu_threads_per_process", type=_integer(1), metavar="N", help=threads)


def _machines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines (torchrun's spellings too)")
    _flag(group, "num_machines", "nnodes", type=_nnodes, metavar="N", help="how many")
    rank = "which of them this is, from 0"
    _flag(group, "machine_rank", "node_rank", type=_integer(0), metavar="K", help=rank)
    address = "address of machine 0"
    _flag(group, "main_process_ip", "master_addr", metavar="ADDRESS", help=address)
    port = "MASTER_PORT for the processes (default 0: chosen)"
    _flag(
        group,
        "main_process_port",
        "master_port",
        type=_integer(0, 65535),
        metavar="PORT",
        help=port,
    )
    each = "processes on this machine, instead of --num_processes"
    _flag(group, "nproc_per_node", type=_per_machine, metavar="N", help=each)
    _flag(group, "standalone", action="store_true", help="one machine: what happens anyway")


def _how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    _flag(group, "mixed_precision", choices=PRECISIONS, help="precision of the products")
    steps = "batches per optimizer step"
    _flag(group, "gradient_accumulation_steps", type=_integer(1), metavar="N", help=steps)
    _flag(group, "config_file", metavar="FILE", help="configuration file in Accelerate's format")
    _flag(group, "dynamo_backend", metavar="NAME", help="no: nothing else in this version")
    again = "start all processes again after a failure, up to N times"
    _flag(group, "max_restarts", type=_integer(0), default=0, metavar="N", help=again)
    grace = "seconds between SIGTERM and SIGKILL when the job is told to end (default 10)"
    _flag(group, "grace_period", type=float, metavar="SECONDS", help=grace)


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    logs = "keep what each process prints in DIR/RUN/attempt_K/RANK/stdout.log and stderr.log"
    _flag(group, "log_dir", metavar="DIR", help=logs)
    tee = "which streams go there: 1 stdout, 2 stderr, 3 both (default 3); by rank: 0:3,1:2"
    _flag(group, "tee", "-t", type=_tee, metavar="WHICH", help=tee)
    quiet = "no remarks of the launcher's own; errors are shown"
    _flag(group, "quiet", "-q", action="store_true", help=quiet)
    debug = "set ACCELERATE_DEBUG_MODE for the processes"
    _flag(group, "debug", action="store_true", help=debug)


def _accepted(parser: argparse.ArgumentParser) -> None:
    for name in _NOTHING_TO_SET:
        how: dict[str, Any] = {"metavar": "X"}
        if name in ("same_network", "enable_cpu_affinity", "downcast_bf16"):
            how = {"action": "store_true"}
        _flag(parser, name, help=argparse.SUPPRESS, **how)


def _parser() -> _Parser:
    parser = _Parser(
        prog="paceline launch",
        usage="paceline launch [options] script.py [arguments of the script]",
        description="Run a training script on one or several processes that train one model.",
        allow_abbrev=False,
        formatter_class=_Help,
        epilog="A setting is taken from the command line, else the environment, else the\n"
        "configuration file. `-` and `_` in option names are the same.\n"
        f"Accepted, with nothing to set: {', '.join(_NOTHING_TO_SET)}.",
    )
    for add in (_what, _where, _machines, _how, _output, _accepted):
        add(parser)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Parameters
    ----------
    argv : sequence of str
        The words after ``paceline launch``.

    Returns
    -------
    argparse.Namespace
        None or False where it says nothing.

    Raises
    ------
    UsageError
        For an unknown option, or one of a later version.
    """
    parser = _parser()
    args, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].split("=")[0]
        if flag.lstrip("-").replace("-", "_") in _FLAGS_LATER:
            raise UsageError(f"{flag} comes in a later version")
        known = sorted(name for action in parser._actions for name in action.option_strings)
        near = difflib.get_close_matches(flag, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown option {flag}{hint} (options of the script stand after it)")
    if args.dynamo_backend not in (None, "no", "NO"):
        raise UsageError(
            f"--dynamo_backend {args.dynamo_backend} comes in a later version: leave it out"
        )
    return args
