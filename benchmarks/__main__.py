# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [PART ...] [--rounds N] [--json FILE]``: what is timed beside others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import allreduce, bridge, checkpoint, loader, ops, overhead, train
from benchmarks.processes import cpu_name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["train", "allreduce"],
                        choices=["train", "allreduce", "ops", "loader", "bridge",
                                 "checkpoint", "overhead"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["gpt", "mlp"], choices=list(train.STEPS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{cpu_name()}; {args.rounds} rounds, interleaved")
    results: dict[str, Any] = {"cpu": cpu_name(), "rounds": args.rounds}
    if "allreduce" in args.parts:
        results["allreduce"] = allreduce.run(args.rounds)
        allreduce.report(results["allreduce"])
    for model in args.models if "train" in args.parts else []:
        for precision in args.precisions:
            table = train.run(model, precision, args.rounds)
            results.setdefault("train", []).append(table)
            train.report(table)
    if "ops" in args.parts:
        results["ops"] = ops.run(args.rounds)
        ops.report(results["ops"])
    if "loader" in args.parts:
        results["loader"] = loader.run(args.rounds)
        loader.report(results["loader"])
    if "bridge" in args.parts:
        results["bridge"] = [bridge.run(m, "fp32", args.rounds) for m in bridge.STEPS]
        for table in results["bridge"]:
            bridge.report(table)
        results["startup"] = bridge.startup(args.rounds)
        bridge.report_startup(results["startup"])
    if "checkpoint" in args.parts:
        results["checkpoint"] = checkpoint.run(args.rounds)
        checkpoint.report(results["checkpoint"])
    if "overhead" in args.parts:
        results["overhead"] = overhead.run(args.rounds)
        overhead.report(results["overhead"])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
