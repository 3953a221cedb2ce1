# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [PART ...]``: what is timed beside others, as tables and as JSON.

``plot``, ``measures`` and ``document`` with RESULT.json ... draw pictures, print targets, and put
figures into docs/performance.md and docs/scaling.md.
A part is a module with ``run(session)`` that yields tables.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, Peers
from benchmarks.session import Session, head, head_text
from benchmarks.table import Table, text

PARTS = ["train", "allreduce", "ops", "loader", "bridge", "checkpoint", "overhead",
         "compute", "startup", "scaling", "adamw", "exposed", "network",
         "memory", "gpu"]  # fmt: skip
TOOLS = ["plot", "measures", "document"]
MODELS = ["gpt", "gpt-b1", "gpt2", "mlp"]


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", default=[],
                        help=f"of {', '.join(PARTS)}; all if none is named")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="turns of each row (5)")
    parser.add_argument("--quick", action="store_true",
                        help="the smallest sizes: that a part runs, not how fast")  # fmt: skip
    parser.add_argument("--json", type=Path, help="where the samples go")
    parser.add_argument(
        "--models", nargs="+", default=[], choices=MODELS, help="those of train and bridge"
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"],
                        choices=["fp32", "bf16"])  # fmt: skip
    parser.add_argument("--without", nargs="+", default=[], choices=list(PEERS),
                        help="peers that are left out")  # fmt: skip
    parser.add_argument("--cases", nargs="+", default=list(Session.cases),
                        choices=Session.cases, help="of training steps")  # fmt: skip
    parser.add_argument("--wires", nargs="+", default=[], metavar="WIRE",
                        help="of scaling, such as 'TCP, 1 Gbit/s'")  # fmt: skip
    for peer in PEERS:
        parser.add_argument(f"--python-{peer}", metavar="PATH",
                            help=f"interpreter that has {peer}")  # fmt: skip
    args = parser.parse_args(words)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return args


def session_of(args: argparse.Namespace) -> Session:
    """What the parts are given."""
    pythons = {peer: getattr(args, f"python_{peer}") for peer in PEERS}
    pythons = {peer: python for peer, python in pythons.items() if python}
    peers = Peers(pythons, set(args.without))
    return Session(args.rounds, args.quick, peers, tuple(args.models), tuple(args.precisions),
                   tuple(args.cases), tuple(args.wires))  # fmt: skip


def tables(parts: list[str], session: Session) -> Iterator[Table]:
    """Run part by part; Ctrl-C ends it after what was measured."""
    for name in parts:
        part = importlib.import_module(f"benchmarks.{name}")
        try:
            yield from part.run(session)
        except KeyboardInterrupt:
            session.interrupted = True
        if session.interrupted:
            return


def main(words: list[str]) -> int:
    """Run what the command line asks for and give the exit status."""
    if words[:1] and words[0] in TOOLS:
        return int(importlib.import_module(f"benchmarks.{words[0]}").main(words[1:]))
    args = arguments(words)
    session = session_of(args)
    result: dict[str, Any] = {"head": head(session, words), "tables": []}
    print(head_text(result["head"]), flush=True)
    for table in tables(args.parts or PARTS, session):
        print(text(table), flush=True)
        result["tables"].append(table.to_json())
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if session.interrupted:
        print("interrupted: the tables above are what was measured", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
