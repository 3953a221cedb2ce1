# SPDX-License-Identifier: Apache-2.0
"""The cost model of docs/scaling.md against what is measured: shared memory and limited networks.

alpha and beta are measured between two ranks, each phase of a step on two ranks that do not
communicate; the model (benchmarks/cost.py) then says what 2, 4 and 8 ranks take, and the same is
measured. Networks are namespaces of this machine, so more ranks than cores share them.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import cost, netns
from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

SHARED = "shared memory"
WIRES = {
    SHARED: None,
    "TCP, unlimited": netns.Limits(),
    "TCP, 1 Gbit/s": netns.Limits(mbit=1000),
    "TCP, 200 Mbit/s": netns.Limits(mbit=200),
    "TCP, 1 Gbit/s, 1 ms": netns.Limits(mbit=1000, delay_ms=1),
}
WORLDS = (2, 4, 8)
POINTS = {8 << 10: 40, 64 << 10: 20, 192 << 10: 10}  # what alpha and beta are fitted to
CHECK = 4 << 20
BUCKETS = {1 << 20: 50, 4 << 20: 20, 16 << 20: 5, 32 << 20: 3}


@dataclass
class Seen:
    """What one number of ranks showed on one wire; seconds, a list per round."""

    reduce: dict[int, list[float]] = field(default_factory=dict)
    bucket: dict[int, list[float]] = field(default_factory=dict)
    alone: list[list[float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def run(session: Session) -> Iterator[Table]:
    """Yield what the model was given, its all-reduces and its steps beside the measured ones."""
    seen: dict[tuple[str, int], Seen] = {}
    try:
        for wire, ranks in cases(session):
            try:
                seen[wire, ranks] = measure(session, wire, ranks)
            except netns.Unavailable as error:
                session.say(f"scaling, {wire}: left out: {error}")
    except KeyboardInterrupt:
        session.interrupted = True
    if (SHARED, 2) in seen:
        yield from tables(seen)


def cases(session: Session) -> list[tuple[str, int]]:
    """Wires and numbers of ranks, two ranks first, for they give alpha and beta."""
    if session.quick:
        return [(SHARED, 2), ("TCP, 1 Gbit/s, 1 ms", 2)]
    unknown = set(session.wires) - set(WIRES)
    if unknown:
        raise SystemExit(f"[benchmarks] no wire {unknown.pop()!r}: choose from {', '.join(WIRES)}")
    wires = [wire for wire in WIRES if not session.wires or wire in {SHARED, *session.wires}]
    # Two ranks in shared memory tell how long computing takes, so they are always there.
    shared = WORLDS if not session.wires or SHARED in session.wires else WORLDS[:1]
    worlds = {SHARED: shared, "TCP, 1 Gbit/s": WORLDS}
    return [(wire, n) for wire in wires for n in worlds.get(wire, WORLDS[:2])]


def measure(session: Session, wire: str, ranks: int) -> Seen:
    """Start the ranks on a wire and ask them."""
    limits = WIRES[wire]
    session.say(f"scaling: {ranks} ranks, {wire}")
    model = "tiny" if session.quick else "gpt-b1"
    with contextlib.ExitStack() as stack:
        row = Ranks("benchmarks.scaling_worker", [model], ranks)
        stack.callback(row.stop)
        if limits is not None:
            net = stack.enter_context(netns.machines(ranks, limits))
            row.prefixes = [net.prefix_of(rank) for rank in range(ranks)]
            row.env_of = net.env_of
        row.start()
        return asked(row, session, limits is None)


def asked(row: Ranks, session: Session, shared: bool) -> Seen:
    """Ask round by round; the slowest rank counts."""
    seen = Seen(sizes=row.ask("sizes")[0])
    for _ in range(session.rounds):
        for nbytes, times in {**POINTS, CHECK: 2}.items():
            seen.reduce.setdefault(nbytes, []).append(max(row.ask(f"all_reduce {nbytes} {times}")))
        for nbytes, times in BUCKETS.items() if shared else ():
            seen.bucket.setdefault(nbytes, []).append(max(row.ask(f"bucket {nbytes} {times}")))
        seen.alone.append(max(row.ask("steps 2 alone"), key=lambda parts: parts[-1]))
        seen.steps.append(max(parts[-1] for parts in row.ask("steps 2")))
    return seen


def tables(seen: dict[tuple[str, int], Seen]) -> Iterator[Table]:
    """Yield the tables from what was seen."""
    links = {
        wire: cost.fit([(n, statistics.median(t)) for n, t in found.reduce.items() if n != CHECK])
        for (wire, ranks), found in seen.items()
        if ranks == 2
    }
    alphas = [Row(wire, [1e6 * link.alpha]) for wire, link in links.items()]
    betas = [Row(wire, [link.beta / 1e9]) for wire, link in links.items()]
    note = "Fitted to 8, 64 and 192 KiB between two ranks."
    yield Table("scaling", "alpha, through staging areas", "us", alphas, note=note)
    yield Table("scaling", "beta, through staging areas", "GB/s", betas, False, note)
    model = Model(seen, links)
    reduces = Table("scaling", f"All-reduce of {CHECK >> 20} MiB through staging areas", "ms")
    steps = Table("scaling", "Step of the GPT, batch 1 per rank", "ms")
    for (wire, ranks), found in seen.items():
        case = f"{wire}, {ranks} ranks"
        measured = [1e3 * v for v in found.reduce[CHECK]]
        predicted = 1e3 * model.all_reduce(wire, ranks, CHECK)
        reduces.rows.append(Row(case, measured, {"model": [predicted] * len(measured)}))
        measured = [1e3 * v for v in found.steps]
        predicted = 1e3 * model.step(wire, ranks)
        peers: dict[str, Any] = {"model": [predicted] * len(measured)}
        peers["without communication"] = [1e3 * parts[-1] for parts in found.alone]
        peers["model, without communication"] = [1e3 * model.alone(ranks)] * len(measured)
        steps.rows.append(Row(case, measured, peers))
    yield reduces
    yield steps


class Model:
    """Predictions from the figures of two ranks."""

    def __init__(self, seen: dict[tuple[str, int], Seen], links: dict[str, cost.Link]) -> None:
        self.links = links
        self.cores = os.cpu_count() or 1
        pair = seen[SHARED, 2]
        self.sizes = pair.sizes
        self.shared = {n: statistics.median(t) for n, t in pair.bucket.items()}
        # Two ranks compute alike on every wire: all of their samples count.
        alone = [parts for (_, ranks), found in seen.items() if ranks == 2 for parts in found.alone]
        self.parts = [statistics.median(column) for column in zip(*alone, strict=True)][:3]

    def crowd(self, ranks: int) -> float:
        """How much longer computing takes where ranks share cores; two are what was measured."""
        return max(ranks / self.cores, 1.0) / max(2 / self.cores, 1.0)

    def alone(self, ranks: int) -> float:
        """Seconds of a step without communication."""
        return float(sum(self.parts)) * self.crowd(ranks)

    def busy(self, wire: str, ranks: int, nbytes: float) -> float:
        """Seconds of a core that an all-reduce takes: those where no link limits it."""
        free = "TCP, unlimited" if wire.startswith("TCP") else wire
        return cost.network_all_reduce(ranks, nbytes, self.links.get(free, self.links[wire]))

    def all_reduce(self, wire: str, ranks: int, nbytes: float) -> float:
        """Seconds of an ordinary all-reduce; a core's part is longer where ranks share cores."""
        more = (self.crowd(ranks) - 1) * self.busy(wire, ranks, nbytes)
        return cost.network_all_reduce(ranks, nbytes, self.links[wire]) + more

    def step(self, wire: str, ranks: int) -> float:
        """Seconds of a step whose gradients meet."""
        crowd = self.crowd(ranks)
        slower = [part * crowd for part in self.parts]
        buckets = cost.buckets(self.sizes, near=wire == SHARED)
        if wire == SHARED:
            taken = [cost.shared_bucket(ranks, self.cores, n, self.shared) for n in buckets]
            used = taken
        else:
            taken = [self.all_reduce(wire, ranks, n) for n in buckets]
            used = [crowd * self.busy(wire, ranks, n) for n in buckets]
        return cost.step_seconds(cost.Step(*slower), buckets, taken, used)
