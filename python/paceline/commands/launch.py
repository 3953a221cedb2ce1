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
from dataclasses import replace

from ..environment import truth
from .cores import share_out
from .job import Settings, rank_environment
from .logs import LogFolder
from .options import parse
from .resolve import UsageError, resolve
from .supervise import Outcome, Policy, RankCommand, Supervisor
from .verdict import exit_code, summary

__all__ = ["main"]


def _check_script(args: argparse.Namespace) -> None:
    if args.no_python and (args.module or args.as_accelerate):
        flag = "-m" if args.module else "--as_accelerate"
        raise UsageError(f"{flag} and --no_python contradict each other")
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


def _commands(
    args: argparse.Namespace, settings: Settings, launch_id: str, logs: LogFolder | None
) -> list[RankCommand]:
    if args.no_python:
        argv = [args.script, *args.script_args]
    else:
        module = ["-m"] if args.module else []
        compat = ["-m", "paceline.compat"] if args.as_accelerate else []
        argv = [sys.executable, "-u", *compat, *module, args.script, *args.script_args]
    pin = truth(os.environ.get("PACELINE_PIN", "")) is not False
    commands = []
    for rank, share in enumerate(share_out(settings.num_processes, settings.threads, pin)):
        env = rank_environment(settings, rank, launch_id, os.environ)
        env["OMP_NUM_THREADS"] = str(share.threads)
        copies = (-1, -1) if logs is None else logs.descriptors(settings.restart, rank)
        commands.append(RankCommand(argv, env, share.cpus, copy_fds=copies))
    return commands


def _logs(args: argparse.Namespace, launch_id: str) -> LogFolder | None:
    if args.log_dir is None and args.tee is None:
        return None
    folder = args.log_dir
    if folder is None:
        import tempfile

        folder = tempfile.mkdtemp(prefix="paceline-logs-")
        print(f"paceline launch: --tee without --log_dir: logs go to {folder}", file=sys.stderr)
    return LogFolder(os.path.join(folder, launch_id), args.tee or {-1: 3})


def _run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the job, again after a failure as often as it may be."""
    launch_id = os.urandom(16).hex()
    logs = _logs(args, launch_id)
    while True:
        try:
            outcome = _attempt(args, settings, launch_id, logs)
        finally:
            if logs is not None:
                logs.close()
        code = _conclude(outcome)
        if outcome.root is None or outcome.signal or settings.restart == settings.max_restarts:
            return code
        settings = replace(settings, restart=settings.restart + 1)
        print(
            f"paceline launch: starting all processes again ({settings.restart} of "
            f"{settings.max_restarts})",
            file=sys.stderr,
        )


def _attempt(
    args: argparse.Namespace, settings: Settings, launch_id: str, logs: LogFolder | None
) -> Outcome:
    from . import terminal

    grace_s = args.grace_period if args.grace_period is not None else 10.0
    supervisor: Supervisor
    sinks = None
    # One rank alone keeps this process's own descriptors.
    if settings.num_processes > 1 or logs is not None:
        sinks = terminal.sinks(lambda: supervisor.stopping())
    try:
        supervisor = Supervisor(
            _commands(args, settings, launch_id, logs),
            launch_id,
            sinks,
            Policy(grace_s=grace_s, first_rank=settings.machines.rank * settings.num_processes),
            terminal.open_stream,
        )
        return supervisor.run()
    except OSError as error:
        raise UsageError(
            f"cannot start {error.filename or 'a process'}: {error.strerror}"
        ) from None


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
        args = parse(sys.argv[1:] if argv is None else argv)
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
