# SPDX-License-Identifier: Apache-2.0
"""``paceline plot``: loss, learning rate and throughput of runs in one picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_ABOUT = """\
Draw what trackers wrote (log_with="csv", "jsonl" or "tensorboard"): loss, learning rate and
throughput of one or several runs, one below the other."""
_EXAMPLES = """\
examples:
  paceline plot logs/my_project
  paceline plot baseline=logs/a larger=logs/b -o compare.html
  paceline plot logs/* --keys train/loss,eval/accuracy --x time -o curves.svg"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline plot",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, folder of runs, or a file of one; NAME=PATH names it",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        default="plot.png",
        help="picture to write, by its end .png, .svg, .pdf or .html (default: plot.png)",
    )
    parser.add_argument(
        "--keys", metavar="NAME,...", help="draw these names, not loss, rate and throughput"
    )
    parser.add_argument(
        "--x", choices=("step", "time"), default="step", help="horizontal axis (default: step)"
    )
    parser.add_argument(
        "--smooth",
        metavar="N",
        type=int,
        help="average over N points; 1: none (default: a fiftieth of a line of 200 points or more)",
    )
    parser.add_argument("--title", metavar="TEXT", help="above the picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline plot --help``.

    Returns
    -------
    int
        0; 2 for a wrong call, or runs that cannot be read or drawn.
    """
    from ..plotting import PlotError

    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        return _plot(args)
    except PlotError as error:
        print(f"paceline plot: {error}", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"paceline plot: {where}{error.strerror}", file=sys.stderr)
    return 2


def _plot(args: argparse.Namespace) -> int:
    from ..plotting import PlotError, choose_panels, draw, find_runs
    from ..plotting.picture import Style, summary

    if args.smooth is not None and args.smooth < 1:
        raise PlotError(f"--smooth must be at least 1: got {args.smooth}")
    runs = find_runs(args.runs)
    keys = [key for key in args.keys.split(",") if key] if args.keys else None
    panels = choose_panels(runs, keys)
    out = Path(args.out)
    draw(panels, out, Style(args.title, args.x == "time", args.smooth))
    for run in runs:
        told = summary(run, panels)
        name = told.pop("run")
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
