# SPDX-License-Identifier: Apache-2.0
"""``paceline launch``: run a training script on one or several processes of this machine.

Settings come from the command line, else the environment, else the configuration file. Whatever
cannot be done is refused before anything is started, in one sentence, with exit code 2. Standard
library only (and PyYAML, where there is a file to read), since its start is everybody's wait.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .cores import share_out
from .job import PRECISIONS, Settings, rank_environment
from .resolve import UsageError, resolve
from .supervise import Outcome, Policy, RankCommand, Supervisor
from .verdict import exit_code, summary

__all__ = ["main"]

# Flags of Accelerate's launcher that scripts and tutorials use and that are still to come.
_FLAGS_LATER = (
    "gpu_ids max_restarts monitor_interval tee log_dir quiet machine_rank main_process_ip "
    "same_network rdzv_backend enable_cpu_affinity use_deepspeed use_fsdp zero_stage "
    "deepspeed_config_file gradient_clipping dynamo_backend tpu"
).split()


# --- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`paceline launch --help` lists the options)")


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


def _parser() -> _Parser:
    parser = _Parser(
        prog="paceline launch",
        usage="paceline launch [options] script.py [arguments of the script]",
        description="Run a training script on one or several processes that train one model.",
        allow_abbrev=False,
        # A width of its own: asking the terminal for one loads a module at every start.
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=96),
        epilog="A setting is taken from the command line, else the environment, else the\n"
        "configuration file. `-` and `_` in option names are the same.",
    )

    def add(group: Any, name: str, *short: str, **how: Any) -> None:
        both = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        group.add_argument(*short, *both, dest=name, **how)

    what = parser.add_argument_group("what to run")
    what.add_argument("script", help="a script, or with -m a module")
    what.add_argument("script_args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add(what, "module", "-m", action="store_true", help="run a module, as `python -m` does")
    add(what, "no_python", action="store_true", help="run a program that is not a Python script")
    where = parser.add_argument_group("where")
    add(where, "num_processes", "-n", type=_integer(1), metavar="N", help="processes (default 1)")
    add(where, "cpu", action="store_true", help="keep to the CPU, whatever the file says")
    add(where, "multi_gpu", action="store_true", help="demand one GPU per process")
    add(where, "num_machines", type=_integer(1), metavar="N", help="machines: 1 in this version")
    threads = "threads per process (default: cores / processes)"
    add(where, "num_cpu_threads_per_process", type=_integer(1), metavar="N", help=threads)
    port = "MASTER_PORT for the processes (default 0: chosen)"
    add(where, "main_process_port", type=_integer(0, 65535), metavar="PORT", help=port)
    how = parser.add_argument_group("how")
    add(how, "mixed_precision", choices=PRECISIONS, help="precision of the products")
    steps = "batches per optimizer step"
    add(how, "gradient_accumulation_steps", type=_integer(1), metavar="N", help=steps)
    add(how, "config_file", metavar="FILE", help="configuration file in Accelerate's format")
    add(how, "debug", action="store_true", help="set ACCELERATE_DEBUG_MODE for the processes")
    grace = "seconds between SIGTERM and SIGKILL when the job is told to end (default 10)"
    add(how, "grace_period", type=float, metavar="SECONDS", help=grace)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    known = {name for action in parser._actions for name in action.option_strings}
    args, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].split("=")[0]
        if flag.lstrip("-").replace("-", "_") in _FLAGS_LATER:
            raise UsageError(f"{flag} comes in a later version")
        near = difflib.get_close_matches(flag, sorted(known), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown option {flag}{hint} (options of the script stand after it)")
    return args


def _check_script(args: argparse.Namespace) -> None:
    if args.module and args.no_python:
        raise UsageError("-m and --no_python contradict each other")
    if args.module or args.no_python:
        return
    path = args.script
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "__main__.py")):
            raise UsageError(f"{path!r} is a folder without __main__.py: expected a script")
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        text = f"cannot read the script {path!r}: {error.strerror}"
        folder = os.path.dirname(path) or "."
        if not os.path.exists(path) and os.path.isdir(folder):
            near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), n=1)
            text += f" (in {os.path.abspath(folder)})"
            text += (
                f"; did you mean {os.path.join(os.path.dirname(path), near[0])}?" if near else ""
            )
        raise UsageError(text) from None


# --- running --------------------------------------------------------------------------------------


def _commands(args: argparse.Namespace, settings: Settings, run_id: str) -> list[RankCommand]:
    if args.no_python:
        argv = [args.script, *args.script_args]
    else:
        module = ["-m"] if args.module else []
        argv = [sys.executable, "-u", *module, args.script, *args.script_args]
    pin = os.environ.get("PACELINE_PIN", "1").strip().lower() not in ("0", "false", "no", "off")
    commands = []
    for rank, share in enumerate(share_out(settings.num_processes, settings.threads, pin)):
        env = rank_environment(settings, rank, run_id, os.environ)
        env["OMP_NUM_THREADS"] = str(share.threads)
        commands.append(RankCommand(argv, env, share.cpus))
    return commands


def _run(args: argparse.Namespace, settings: Settings) -> int:
    from . import terminal

    run_id = os.urandom(16).hex()
    grace_s = args.grace_period if args.grace_period is not None else 10.0
    supervisor: Supervisor
    sinks = None
    if settings.num_processes > 1:  # one rank alone keeps this process's own descriptors
        sinks = terminal.sinks(lambda: supervisor.stopping())
    supervisor = Supervisor(
        _commands(args, settings, run_id),
        run_id,
        sinks,
        Policy(grace_s=grace_s),
        terminal.open_stream,
    )
    try:
        outcome = supervisor.run()
    except OSError as error:
        raise UsageError(
            f"cannot start {error.filename or 'a process'}: {error.strerror}"
        ) from None
    return _conclude(outcome)


def _conclude(outcome: Outcome) -> int:
    """Show the first failure once, and give the exit code."""
    if outcome.signal:
        # Where one rank was when it was interrupted; what others made of that says less.
        told = sorted(outcome.endings, key=lambda ending: ending.kind != "KeyboardInterrupt")
        _show(next((ending.text for ending in told if ending.text), b""))
        return 0 if all(e.code == 0 for e in outcome.endings) else 128 + outcome.signal
    if outcome.root is None:
        return 0
    _show(outcome.root.text)
    if len(outcome.endings) > 1 or outcome.root.code < 0:
        for line in summary(outcome.root, outcome.endings):
            print(f"paceline launch: {line}", file=sys.stderr)
    return exit_code(outcome.root)


def _show(text: bytes) -> None:
    sys.stderr.flush()
    sys.stderr.buffer.write(text)
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline launch --help``.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; None means those of this process.

    Returns
    -------
    int
        The exit code of the first rank that failed, 0 if none did, 128 + n when signal n ended
        the job, 2 if nothing was started.
    """
    try:
        if os.name != "posix":
            raise UsageError(f"needs Linux: this is {sys.platform}, where plain `python` works")
        args = _parse(sys.argv[1:] if argv is None else argv)
        _check_script(args)
        settings = resolve(args, os.environ)
        return _run(args, settings)
    except UsageError as error:
        print(f"paceline launch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
