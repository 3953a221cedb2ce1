# SPDX-License-Identifier: Apache-2.0
"""All-reduce of fp32 on two ranks: bandwidth and latency, next to Gloo and to a copy loop.

A copy of n bytes by each rank is the traffic of an in-place all-reduce of n bytes between two
ranks: each reads n bytes (half of both parts) and writes n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

SIZES = {4: 2000, 1 << 20: 200, 16 << 20: 20, 64 << 20: 6}
OURS = {"bucket, in place": "bucket in place", "ordinary buffer": "ordinary buffer"}
PEERS = {"Gloo": "Gloo"}
LIMIT = "copy loop of both ranks"


def run(session: Session) -> Iterator[Table]:
    """Yield latency and bandwidth; the slower rank counts."""
    sizes = {4: 10, 1 << 16: 2} if session.quick else SIZES
    rows = {
        "paceline": Ranks("benchmarks.reduce_worker", ["paceline"], 2),
        "Gloo": Ranks("benchmarks.reduce_worker", ["torch"], 2, needs="torch"),
    }

    def ask(_: str, row: Ranks) -> dict[int, dict[str, float]]:
        took = {}
        for nbytes, repeats in sizes.items():
            answers = row.ask(f"go {nbytes} {repeats}")
            took[nbytes] = {kind: max(a[kind] for a in answers) for kind in answers[0]}
        return took

    with session.running(rows, "allreduce") as contest:
        took = contest.turns(ask)
    latency = Table("allreduce", "All-reduce, 4 bytes, 2 ranks", "us")
    latency.rows = _rows(took, 4, lambda nbytes, seconds: 1e6 * seconds)
    yield latency
    title = "All-reduce, fp32, 2 ranks"
    bandwidth = Table("allreduce", title, "GB/s of the buffer", lower_is_better=False)
    for nbytes in list(sizes)[1:]:
        bandwidth.rows += _rows(took, nbytes, lambda n, seconds: n / seconds / 1e9)
    bandwidth.note = "The copy reads its target's lines before it writes them; a bucket need not."
    yield bandwidth


def _rows(took: dict[str, Any], nbytes: int, shown: Any) -> list[Row]:
    def samples(who: str, kind: str) -> Any:
        answers = took[who]
        if isinstance(answers, str):
            return answers
        return [shown(nbytes, answer[nbytes][kind]) for answer in answers]

    size = f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes} B"
    peers = {name: samples(name, kind) for name, kind in PEERS.items()}
    if nbytes >= 1024:
        peers[LIMIT] = samples("paceline", "copy loop (limit)")
    ours = {name: samples("paceline", kind) for name, kind in OURS.items()}
    return [Row(f"{size}, {name}", values, dict(peers)) for name, values in ours.items()]
