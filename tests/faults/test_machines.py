# SPDX-License-Identifier: Apache-2.0
"""Faults between machines: deaths, cut links, strangers, and machines that do not fit together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from harness import Ranks, Result, _result
from machines import PORT, Net

BOUND_S = 5 * 0.2  # the promise of 200 ms on a busy machine

LOOP = """
import time
import numpy as np
import paceline.distributed as dist
from rankside import ARGS, RANK, WORLD, failing, mark

dist.init_process_group(timeout=30)
x = np.ones(ARGS.get("size", 4), "float32")
dist.barrier()
mark("going")
with failing():
    while True:
        dist.all_reduce(x, dist.ReduceOp.MAX)
        exec(ARGS.get("then", ""))
"""


def ends(ranks: Ranks, timeout: float = 20.0, **expect: int) -> list[Result]:
    ranks.wait(timeout)
    ranks.check({int(rank[1:]): code for rank, code in expect.items()})
    return [_result(rank) for rank in ranks.ranks]


@pytest.mark.parametrize(
    ("sizes", "victim", "size"),
    [((1, 1), 1, 4), ((1, 1), 0, 1 << 20), ((2, 1), 0, 4), ((1, 2), 2, 1 << 20), ((1, 1, 1), 1, 4)],
)
def test_a_killed_rank_is_named_by_all(sizes: tuple[int, ...], victim: int, size: int) -> None:
    with Net(sizes) as net, net.ranks(LOOP, args={"size": size}) as ranks:
        for rank in range(net.world):
            ranks.await_mark(rank, "going")
        time.sleep(0.1)
        at = ranks.hit(victim, signal.SIGKILL)
        results = ends(ranks, **{f"r{victim}": -9})
    for rank, result in enumerate(results):
        if rank == victim:
            continue
        error = result.exception
        assert error["type"] == "PeerLostError", error
        assert error["dead_ranks"] == [victim]
        assert "died" in error["text"]
        assert error["op"] == "all_reduce"
        assert error["at"] - at <= BOUND_S


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)], ids=str)
def test_an_exception_is_quoted_on_every_machine(sizes: tuple[int, ...]) -> None:
    body = LOOP.replace(
        "with failing():", "if RANK == 1:\n    raise KeyError('lost')\nwith failing():"
    )
    with Net(sizes) as net, net.ranks(body) as ranks:
        results = ends(ranks, r1=1)
    for rank, result in enumerate(results):
        if rank != 1:
            error = result.exception
            assert (error["type"], error["rank"]) == ("RemoteError", 1)
            assert (error["remote_type"], error["remote_message"]) == ("KeyError", "'lost'")


def test_a_rank_that_finished_is_named() -> None:
    body = LOOP.replace("with failing():", "if RANK == 1:\n    raise SystemExit\nwith failing():")
    with Net((1, 1)) as net, net.ranks(body) as ranks:
        error = ends(ranks)[0].exception
    assert (error["type"], error["dead_ranks"]) == ("PeerLostError", [1])
    assert "rank 1 finished normally after seq" in error["text"]


@pytest.mark.parametrize("field", ["count", "op"])
def test_ranks_that_disagree_get_one_table(field: str) -> None:
    body = LOOP.replace("x = ", "y = ") + ""
    body = body.replace("while True:", "while True:\n        time.sleep(0.05)").replace(
        "dist.all_reduce(x, ", "odd() if RANK == 3 else dist.all_reduce(y, "
    )
    body = body.replace("import time", "import time\nodd = lambda: " + {
        "count": "dist.all_reduce(np.ones(5, 'float32'), dist.ReduceOp.MAX)",
        "op": "dist.broadcast(y, 0)",
    }[field])  # fmt: skip
    with Net((2, 2)) as net, net.ranks(body) as ranks:
        results = ends(ranks)
    texts = {result.exception["text"].split("\n[")[0].split(": seq")[0] for result in results}
    for result in results:
        error = result.exception
        assert error["type"] == "CollectiveMismatchError"
        assert f"disagree on {field}" in error["text"]
        assert all(f"rank={rank}, {field}=" in error["text"] for rank in range(4)), error["text"]
    assert texts


SLOW = pytest.mark.slow
CUTS = [
    ((1, 1), 4),
    pytest.param((1, 1), 1 << 20, marks=SLOW),
    pytest.param((2, 2), 4, marks=SLOW),
    pytest.param((1, 1, 1), 4, marks=SLOW),
]


@pytest.mark.parametrize(("sizes", "size"), CUTS, ids=str)
def test_a_cut_link_is_named(sizes: tuple[int, ...], size: int) -> None:
    with Net(sizes) as net, net.ranks(LOOP, args={"size": size}) as ranks:
        for rank in range(net.world):
            ranks.await_mark(rank, "going")
        time.sleep(0.2)
        at = time.monotonic()
        net.cut(len(sizes) - 1)
        results = ends(ranks)
    gone = [rank for rank in range(net.world) if net.machine_of(rank) == len(sizes) - 1]
    for rank, result in enumerate(results):
        error = result.exception
        assert error["type"] == "PeerLostError", error
        assert error["at"] - at <= 5.0
        assert "is lost" in error["text"]
        if rank not in gone:
            assert error["dead_ranks"] == gone, error
        else:
            assert error["dead_ranks"]
            assert not set(error["dead_ranks"]) & set(gone)


def test_how_long_a_link_may_be_silent_can_be_set() -> None:
    with Net((1, 1)) as net, net.ranks(LOOP, PACELINE_LINK_TIMEOUT="1") as ranks:
        for rank in range(net.world):
            ranks.await_mark(rank, "going")
        time.sleep(0.2)
        at = time.monotonic()
        net.cut(1)
        for result in ends(ranks):
            assert result.exception["at"] - at <= 2.5
            assert "after 1.0 s without an answer" in result.exception["text"]


@pytest.mark.slow
def test_a_frozen_rank_is_not_taken_for_dead() -> None:
    body = LOOP.replace("timeout=30", "timeout=6")
    with Net((1, 1)) as net, net.ranks(body) as ranks:
        for rank in range(2):
            ranks.await_mark(rank, "going")
        ranks.hit(1, signal.SIGSTOP)
        ranks.wait(20, only=[0])
        error = ranks.ranks[0].exception
    assert error["type"] == "CollectiveTimeoutError"
    assert "frozen" in error["text"]
    assert "missing ranks: 1" in error["text"]


def test_an_interrupt_ends_a_wait_and_is_told_to_the_others() -> None:
    body = LOOP.replace("with failing():", "if RANK == 1:\n    time.sleep(30)\nwith failing():")
    with Net((1, 1)) as net, net.ranks(body) as ranks:
        for rank in range(2):
            ranks.await_mark(rank, "going")
        time.sleep(0.2)
        at = ranks.hit(0, signal.SIGINT)
        ranks.wait(20, only=[0])
        assert ranks.ranks[0].exception["type"] == "KeyboardInterrupt"
        assert ranks.ranks[0].exception["at"] - at <= BOUND_S


def test_groups_come_and_go_without_a_trace() -> None:
    body = """
import os
import numpy as np
import paceline.distributed as dist
from rankside import RANK, out

def held():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

seen = []
for turn in range(8):
    dist.init_process_group()
    dist.all_reduce(np.ones(70_000))
    dist.destroy_process_group()
    seen.append(held())
out(seen)
"""
    with Net((2, 1)) as net:
        for result in net.run(body):
            assert len({tuple(each) for each in result.outs[0][2:]}) == 1, result.outs
            assert not result.stderr


# -- coming together ----------------------------------------------------------------------------

MEET = """
import paceline.distributed as dist
from rankside import failing, mark, out
with failing():
    dist.init_process_group()
    dist.barrier()
    out("met")
    raise SystemExit
"""


def meet(net: Net, changes: dict[int, dict[str, str]], timeout: float = 15.0) -> list[Result]:
    with Ranks(
        net.world,
        MEET,
        env_of=lambda rank: {
            **net.env_of(rank),
            "PACELINE_INIT_TIMEOUT": "3",
            **changes.get(rank, {}),
        },
        prefix_of=net.prefix_of,
    ) as ranks:
        ranks.wait(timeout)
        return [_result(rank) for rank in ranks.ranks]


def test_another_secret_lets_nobody_in() -> None:
    with Net((1, 1)) as net:
        other = net.secret.with_name("other")
        other.write_text("another secret that is as long as it has to be")
        other.chmod(0o600)
        first, second = meet(net, {1: {"PACELINE_SECRET_FILE": str(other)}})
    assert "1 of 2 ranks came within 3 s" in first.exception["text"]
    assert first.exception["missing_ranks"] == [1]
    assert "PACELINE_SECRET_FILE" in second.exception["text"]


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (None, 0o600, "is not set"),
        ("short", 0o600, "too short: got 5 bytes"),
        ("x" * 40, 0o644, "may be read by others: got mode 0644"),
        ("", -1, "cannot be read"),
    ],
)
def test_a_secret_that_cannot_be_used(content: str | None, mode: int, text: str) -> None:
    with Net((1, 1)) as net:
        path = net.secret.with_name("bad")
        if mode >= 0 and content is not None:
            path.write_text(content)
            path.chmod(mode)
        change = {"PACELINE_SECRET_FILE": "" if content is None else str(path)}
        started = time.monotonic()
        results = meet(net, {0: change, 1: change})
        assert time.monotonic() - started < 10
    for result in results:
        assert result.exception["type"] == "ConfigError"
        assert text in result.exception["text"]


def test_machines_that_disagree_on_the_world() -> None:
    with Net((1, 1)) as net:
        results = meet(net, {1: {"WORLD_SIZE": "3"}})
    for result in results:
        text = result.exception["text"]
        assert "ranks disagree on WORLD_SIZE: got 3 on rank 1, 2 on rank 0" in text


@pytest.mark.slow
def test_a_rank_that_comes_twice() -> None:
    with Net((1, 1, 1)) as net:
        results = meet(net, {2: {"RANK": "1"}})
    assert results[0].exception["missing_ranks"] == [2]
    texts = [result.exceptions[0]["text"] for result in results[1:] if result.exceptions]
    assert any("is taken by another machine" in text for text in texts), texts


@pytest.mark.slow
def test_a_machine_that_does_not_come_is_named() -> None:
    with Net((1, 2)) as net:
        away = {rank: {"MASTER_ADDR": "10.77.0.99"} for rank in (1, 2)}
        results = meet(net, away)
    assert results[0].exception["joined_ranks"] == [0]
    assert results[0].exception["missing_ranks"] == [1, 2]
    assert "10.77.0.99" in results[1].exception["text"]
    assert "10.77.0.99" in results[2].exception["text"]  # told by its machine's first


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("machine_party.Member.open_links", "rank 3 died during the rendezvous"),
        ("join.Joiner._collect", "the first of which is 2"),  # its machine had not even met
    ],
)
def test_a_rank_that_dies_while_the_machines_meet(broken: str, text: str) -> None:
    body = f"""
import os, signal, time
from rankside import RANK, failing, mark
from paceline.distributed import join, machine_party
def dies(*_):
    mark("dead")
    os.kill(os.getpid(), signal.SIGKILL)
if RANK == 3:
    {broken} = dies
import paceline.distributed as dist
with failing():
    dist.init_process_group()
"""
    with Net((2, 2)) as net, net.ranks(body) as ranks:
        results = ends(ranks, r3=-9)
    for result in results[:3]:
        assert result.exception["dead_ranks"] == [3], result.exception
        assert text in result.exception["text"]
        assert result.exception["at"] - results[3].marks["dead"] <= 2.0


# -- strangers ----------------------------------------------------------------------------------

# Connects to a port again and again and sends what it is told to; run on a machine of the net.
STRANGER = """
import random, socket, sys, time
address, port, until = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
rng, tries, answers, kept = random.Random(0), 0, 0, []
while time.monotonic() < until:
    try:
        sock = socket.create_connection((address, port), 0.2)
    except OSError:
        time.sleep(0.01)
        continue
    tries += 1
    sock.settimeout(0.05)
    head = b"paceln\\x00\\x01" + (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
    try:
        if tries % 3 == 0:
            kept.append(sock)  # says nothing
            continue
        noise = rng.randbytes(rng.randrange(200))
        sock.sendall(head + rng.randbytes(32) if tries % 3 == 1 else noise)
        if len(sock.recv(80)) == 80:
            answers += 1
            sock.sendall(rng.randbytes(32))  # in place of the proof
            assert not sock.recv(1), "a stranger was let in"
    except OSError:
        pass
    sock.close()
print(tries, answers)
"""


def test_strangers_disturb_nothing_and_learn_nothing() -> None:
    with Net((1, 1)) as net:
        command = [*net.prefix_of(1), sys.executable, "-c", STRANGER]
        stranger = subprocess.Popen(
            [*command, net.address(0), str(PORT + 1), "4"], stdout=subprocess.PIPE, text=True
        )
        body = MEET.replace("with failing():", "import time\ntime.sleep(1)\nwith failing():")
        late = "import time\nfrom rankside import RANK\nif RANK: time.sleep(1.5)\n"
        with net.ranks(late + body) as ranks:
            ranks.wait(20)
            results = [_result(rank) for rank in ranks.ranks]
        shown, _ = stranger.communicate(timeout=20)
    assert [result.outs for result in results] == [["met"], ["met"]], results
    tries, answers = map(int, shown.split())
    assert tries > 20, shown
    assert answers > 5, shown
    assert stranger.returncode == 0


def test_no_port_is_open_to_all_and_none_stays_open() -> None:
    body = """
import subprocess, time
import paceline.distributed as dist
from rankside import RANK, mark, out
seen = set()
import threading, socket
def look():
    while not done:
        lines = [l for f in ("tcp", "tcp6") for l in open("/proc/net/" + f).readlines()[1:]]
        for words in map(str.split, lines):
            if words[3] == "0A":
                seen.add(words[1].split(":")[0])
        time.sleep(0.002)
done = False
thread = threading.Thread(target=look)
thread.start()
if RANK:
    time.sleep(0.5)
dist.init_process_group()
dist.barrier()
done = True
thread.join()
left = [l for l in open("/proc/net/tcp").read().splitlines()[1:] if l.split()[3] == "0A"]
out([sorted(seen), len(left)])
dist.barrier()
"""
    with Net((1, 1)) as net:
        results = net.run(body)
    for rank, result in enumerate(results):
        seen, left = result.outs[0]
        own = socket.inet_aton(net.address(rank))[::-1].hex().upper()
        assert seen == [own], "listened on another address than its own"
        assert left == 0


def test_garbage_on_a_data_connection_is_an_error_that_names_its_rank() -> None:
    body = LOOP.replace(
        "dist.barrier()",
        """dist.barrier()
if RANK == 1:
    import os, socket
    for fd in range(3, 64):
        try:
            peer = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if peer.family == socket.AF_INET and peer.type == socket.SOCK_STREAM:
            try:
                peer.send(os.urandom(4096))
            except OSError:
                pass
        peer.close()
""",
    )
    with Net((1, 1)) as net, net.ranks(body) as ranks:
        results = ends(ranks)
    error = results[0].exception
    assert (error["type"], error["dead_ranks"]) == ("PeerLostError", [1]), error
    assert "no frame of paceline" in error["text"]
