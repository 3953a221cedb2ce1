# SPDX-License-Identifier: Apache-2.0
"""``paceline sweep``: run a script under every combination of settings, and make the table.

Each combination is one ``paceline launch``; the ranks tell how it went through ``run_report``. A
row whose script chose for itself what was to be varied is marked and not compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from .job import PRECISIONS
from .sweep_table import Row, draw, render, write_json

__all__ = ["main"]

_VARIABLE = "PACELINE_REPORT_FILE"  # read by paceline.environment


def _numbers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"expected different numbers such as 1,2; got {text!r}")
    return values


def _precisions(text: str) -> list[str]:
    values = text.split(",")
    if not set(values) <= set(PRECISIONS) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(PRECISIONS)}, separated by commas; got {text!r}"
        )
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline sweep",
        usage="paceline sweep [options] script.py [arguments of the script]",
        description="Run a script under every combination of settings and print a table: time, "
        "samples per second, speed-up, efficiency, share of communication, memory, final loss.",
        allow_abbrev=False,
    )
    parser.add_argument("script", help="a script that uses an Accelerator")
    parser.add_argument("script_args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    for name, kind, default, what in (
        ("num_processes", _numbers, "1,2", "such as 1,2"),
        ("mixed_precision", _precisions, "no", "such as no,bf16"),
        ("gradient_accumulation_steps", _numbers, "1", "such as 1,4,8"),
    ):
        both = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*both, dest=name, type=kind, default=kind(default), help=what)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--output", "-o", metavar="NAME", help="also write NAME.json and NAME.png")
    return parser


def _reports(path: str) -> list[dict[str, Any]]:
    folder, name = os.path.split(path)
    found = []
    for entry in sorted(os.listdir(folder)):
        if entry.startswith(f"{name}."):
            with open(os.path.join(folder, entry), encoding="utf-8") as file:
                found.append(json.load(file))
    return sorted(found, key=lambda report: int(report["rank"]))


def _measure(settings: dict[str, Any], words: Sequence[str], folder: str, number: int) -> Row:
    """Run one combination once."""
    path = os.path.join(folder, f"run{number}")
    flags = [f"--{name}={value}" for name, value in settings.items()]
    argv = [sys.executable, "-m", "paceline.commands.launch", "--quiet", *flags, *words]
    begin = time.perf_counter()
    with open(f"{path}-output", "wb") as output:
        process = subprocess.Popen(
            argv, env={**os.environ, _VARIABLE: path}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    seconds = time.perf_counter() - begin
    if code:
        with open(f"{path}-output", encoding="utf-8", errors="replace") as text:
            sys.stderr.write("".join(text.readlines()[-30:]))
    return Row.of(settings, seconds, code, _reports(path))


def _combinations(args: argparse.Namespace) -> list[dict[str, Any]]:
    names = ("num_processes", "mixed_precision", "gradient_accumulation_steps")
    values = (getattr(args, name) for name in names)
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def _run(args: argparse.Namespace) -> list[Row]:
    import tempfile

    combinations = _combinations(args)
    words = [args.script, *args.script_args]
    runs: list[list[Row]] = [[] for _ in combinations]
    with tempfile.TemporaryDirectory(prefix="paceline-sweep-") as folder:
        # Rounds outside: what disturbs the machine for a while disturbs all combinations alike.
        for number in range(args.rounds * len(combinations)):
            at = number % len(combinations)
            told = ", ".join(f"{name}={value}" for name, value in combinations[at].items())
            print(f"[{number + 1}/{args.rounds * len(combinations)}] {told}", file=sys.stderr)
            runs[at].append(_measure(combinations[at], words, folder, number))
    return [Row.median(rows) for rows in runs]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline sweep --help``.

    Returns
    -------
    int
        0; 1 if a combination failed; 2 for a wrong call.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    if not os.path.isfile(args.script):
        print(f"paceline sweep: cannot read the script {args.script!r}", file=sys.stderr)
        return 2
    if args.rounds < 1:
        print(f"paceline sweep: --rounds: got {args.rounds}, expected 1 or more", file=sys.stderr)
        return 2
    rows = _run(args)
    print(render(rows))
    if args.output:
        write_json(rows, f"{args.output}.json")
        try:
            draw(rows, os.path.basename(args.script), f"{args.output}.png")
        except ImportError:
            print("paceline sweep: no picture without Matplotlib: pip install 'paceline[plot]'")
    return 1 if any(row.code for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
