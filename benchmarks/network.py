# SPDX-License-Identifier: Apache-2.0
"""All-reduce of fp32 between machines, next to Gloo: network namespaces joined by virtual links.

One rank on each machine. The machines share this one's cores, so the links cost processor time
that real ones do not; both libraries pay it. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks import netns
from benchmarks.processes import Ranks
from benchmarks.session import Session
from benchmarks.table import Row, Table

LINKS = {"unlimited": netns.Limits(), "1 Gbit/s, 1 ms": netns.Limits(mbit=1000, delay_ms=1)}
# Bytes, and calls of them in one turn; fewer where a call takes long.
SIZES = {4: 200, 16 << 10: 100, 1 << 20: 10, 16 << 20: 2}
WORLDS = (2, 4)


def run(session: Session) -> Iterator[Table]:
    """Yield one table per link and number of machines."""
    for link, limits in LINKS.items():
        for world in (2,) if session.quick else WORLDS:
            with contextlib.ExitStack() as stack:
                try:
                    net = stack.enter_context(netns.machines(world, limits))
                except netns.Unavailable as error:
                    session.say(f"network: {error}")
                    return
                yield _table(session, net, link, world)


def _rows(net: Any, world: int) -> dict[str, Ranks]:
    device = "tun0" if "tun0" in _devices(net) else "eth0"
    rows = {
        "paceline": Ranks("benchmarks.reduce_worker", ["paceline", "ordinary"], world),
        "Gloo": Ranks("benchmarks.reduce_worker", ["torch"], world, needs="torch"),
    }
    for row in rows.values():
        row.prefixes = [net.prefix_of(rank) for rank in range(world)]
        row.env_of = lambda rank: {**net.env_of(rank), "GLOO_SOCKET_IFNAME": device}
    return rows


def _devices(net: Any) -> str:
    # As `ip link` lists them.
    words = [*net.prefix_of(0), "ip", "-o", "link"]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout


def _table(session: Session, net: Any, link: str, world: int) -> Table:
    sizes = {4: 5, 16 << 10: 2} if session.quick else SIZES
    slow = 1 if link == "unlimited" else 5

    def ask(_: str, row: Ranks) -> dict[int, float]:
        took = {}
        for nbytes, repeats in sizes.items():
            answers = row.ask(f"go {nbytes} {max(1, repeats // slow)}")
            took[nbytes] = 1e6 * max(next(iter(a.values())) for a in answers)
        return took

    with session.running(_rows(net, world), f"network, {link}, {world} machines") as contest:
        took = contest.turns(ask)
    title = f"All-reduce, {world} machines of one rank, link {link}"
    table = Table("network", title, "us")
    for nbytes in sizes:
        ours, theirs = (_of(took[name], nbytes) for name in ("paceline", "Gloo"))
        table.rows.append(Row(_size(nbytes), ours, {"Gloo": theirs}))
    return table


def _of(answers: Any, nbytes: int) -> Any:
    return answers if isinstance(answers, str) else [answer[nbytes] for answer in answers]


def _size(nbytes: int) -> str:
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if nbytes >> shift:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"
