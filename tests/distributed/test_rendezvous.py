# SPDX-License-Identifier: Apache-2.0
"""The rendezvous alone: who meets, who is refused, what is said when somebody is missing.

Needs no data plane: the control memory is of any size here.
"""

from __future__ import annotations

import os
import signal

import pytest

from harness import Break, Ranks, run_ranks

# Every body below runs in a fresh interpreter, so it starts with this.
HEAD = """
import os, sys, time, socket
import rankside
from rankside import ARGS, RANK, WORLD, failing, mark, out
from paceline.distributed import linux
from paceline.distributed.environment import read_job, init_timeout_s
from paceline.distributed.links import Settings, socket_name
from paceline.distributed.rendezvous import rendezvous

def meet(**changes):
    given = dict(control_bytes=lambda world, local: 4096 * world, timeout_s=init_timeout_s(None))
    return rendezvous(read_job(), Settings(**{**given, **changes}))
"""


def script(text: str) -> str:
    return HEAD + text


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_rank_gets_links_to_every_other(world: int) -> None:
    body = script("""
import array, mmap, select, threading
links = meet()
me = os.getpid()
assert links.pids[RANK] == me and links.peer_fds[RANK] == links.pidfds[RANK] == -1
memory = mmap.mmap(links.control_fd, 4096 * WORLD)
assert memory[:] == bytes(4096 * WORLD)
socks = {p: socket.socket(fileno=fd) for p, fd in enumerate(links.peer_fds) if fd >= 0}
for peer, sock in socks.items():
    assert sock.type & socket.SOCK_SEQPACKET and not os.get_inheritable(sock.fileno())
    assert not os.get_inheritable(links.pidfds[peer])
    assert not linux.has_exited(links.pidfds[peer])
    sock.send(b"%d->%d" % (RANK, peer))
for peer, sock in socks.items():
    assert sock.recv(100) == b"%d->%d" % (peer, RANK)
memory[4096 * RANK] = RANK + 1
for peer, sock in socks.items():
    sock.send(b"x"); sock.recv(1)
assert [memory[4096 * r] for r in range(WORLD)] == [r + 1 for r in range(WORLD)]
assert threading.active_count() == 1
out([links.job_id, links.pids, len(os.listdir("/proc/self/fd"))])
""")
    results = run_ranks(world, body)
    jobs = {result.outs[0][0] for result in results}
    assert len(jobs) == 1
    assert len(jobs.pop()) == 32
    assert len({tuple(result.outs[0][1]) for result in results}) == 1
    # stdio, the listing, the memory and its mmap, a socket and a pidfd per peer; nothing else.
    assert {result.outs[0][2] for result in results} == {3 + 1 + 2 + 2 * (world - 1)}
    assert all(not result.stderr for result in results)


def test_rank_0_may_come_last_and_many_times() -> None:
    body = script("""
for turn in range(8):
    if RANK == turn % 2:
        time.sleep(0.05)
    links = meet()
    out(links.job_id)
    links.close()
""")
    results = run_ranks(2, body)
    assert results[0].outs == results[1].outs
    assert len(set(results[0].outs)) == 8


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_a_rank_that_leaves_is_named_by_all_others(victim: int, sig: int) -> None:
    body = script("""
if RANK == 1:
    time.sleep(60)  # never comes
mark("going")
if RANK == ARGS["victim"]:
    meet()
with failing():
    meet()
""")
    expect = {1: -signal.SIGKILL, victim: -sig}
    with Ranks(4, body, args={"victim": victim}) as ranks:
        for rank in (0, 2, 3):
            ranks.await_mark(rank, "going")
        ranks.await_mark(victim, "going")
        import time

        time.sleep(0.3)  # all three have joined
        at = ranks.hit(victim, sig)
        survivors = [rank for rank in (0, 2, 3) if rank != victim]
        ranks.wait(only=survivors)
        ranks.hit(1, signal.SIGKILL)
        ranks.wait()
        ranks.check(expect)
        for rank in survivors:
            error = ranks.ranks[rank].exception
            assert "RendezvousError" in error["kinds"]
            assert "ConnectionError" in error["kinds"]
            assert f"rank {victim}" in error["text"]
            assert error["at"] - at < 1.0
            if victim != 0:
                assert error["dead_ranks"] == [victim]
                assert error["joined_ranks"] == [0, 2, 3]
                assert error["missing_ranks"] == [1]
            elif sig == signal.SIGKILL:
                assert error["dead_ranks"] == [0]


def test_a_rank_that_dies_just_after_is_named_too() -> None:
    # Between the end of the rendezvous and the first step of the data plane.
    body = """
import os, signal
import paceline.distributed as dist
from paceline import _C
from paceline.distributed import process_group
from rankside import RANK, failing, mark
class Dies:
    group_control_bytes = _C.group_control_bytes
    def group_new(*args):
        mark("broken")
        os.kill(os.getpid(), signal.SIGKILL)
if RANK == 1:
    process_group._C = Dies
with failing():
    dist.init_process_group()
"""
    results = run_ranks(3, body, expect={1: -signal.SIGKILL})
    for result in (results[0], results[2]):
        error = result.exception
        assert error["type"] == "PeerLostError"
        assert error["dead_ranks"] == [1]
        assert "rank 1" in error["text"]
        assert error["at"] - results[1].marks["broken"] < 1.0


def test_too_few_file_descriptors_are_named() -> None:
    body = script("""
import resource
if RANK == 2:
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, used + 4))
with failing():
    meet()
""")
    for result in run_ranks(4, body):
        assert "ulimit -n" in result.exception["text"]


def test_a_rank_that_never_comes_is_named_after_the_timeout() -> None:
    body = script("""
if RANK != 2:
    with failing():
        meet(timeout_s=1.0)
""")
    for result in run_ranks(3, body)[:2]:
        assert "2 of 3 ranks came within 1 s" in result.exception["text"]
        assert result.exception["missing_ranks"] == [2]


def test_rank_0_that_never_comes_is_named() -> None:
    body = script("""
if RANK != 0:
    with failing():
        meet(timeout_s=0.5)
""")
    error = run_ranks(2, body)[1].exception
    assert "rank 0 did not come" in error["text"]
    assert error["missing_ranks"] == [0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"},
            "disagree on WORLD_SIZE: got 3 on rank 1, 2",
        ),
        ({"VERSION": "other"}, "disagree on version: got other on rank 1"),
    ],
)
def test_ranks_that_disagree_all_fail(change: dict[str, str], expected: str) -> None:
    body = script("""
with failing():
    meet(version=os.environ.get("VERSION", "this"))
""")
    for result in run_ranks(2, body, env_of=lambda rank: change if rank == 1 else {}):
        assert expected in result.exception["text"]


def test_a_second_holder_of_a_rank_is_refused_and_the_job_goes_on() -> None:
    body = script("""
if RANK == 2:
    os.environ["RANK"] = "1"
    time.sleep(0.3)
    with failing():
        meet()
if RANK == 0:
    time.sleep(0.1)
if RANK == 3:
    time.sleep(0.8)
    os.environ["RANK"] = "2"
os.environ["WORLD_SIZE"] = "3"
links = meet()
out(links.pids)
""")
    # Processes 0, 1 and 3 are a job of three; process 2 also says that it is rank 1.
    env = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    results = run_ranks(4, body, env_of=lambda rank: env)
    pids = results[0].outs[0]
    assert results[1].outs == results[3].outs == [pids]
    error = results[2].exception
    assert "rank 1 is taken" in error["text"]
    assert f"pid {pids[1]}" in error["text"]


def test_a_second_job_on_the_port_is_told_who_has_it() -> None:
    body = script("""
if RANK == 1:
    os.environ["RANK"] = "0"
    time.sleep(0.3)
    start = time.monotonic()
    with failing():
        try:
            meet()
        finally:
            out(time.monotonic() - start)
out(os.getpid())
with failing():
    meet(timeout_s=2.0)
""")
    first, second = run_ranks(2, body)
    assert f"pid {first.outs[0]}" in second.exception["text"]
    assert "is used by another job" in second.exception["text"]
    assert second.outs[0] < 1.5


def test_garbage_does_not_disturb() -> None:
    body = script("""
import random
if RANK == 1:
    random.seed(7)
    name = socket_name(read_job(), "")
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(name)
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    good = b'{"kind": "hello", "protocol": 1, "version": "", "config": "", "rank": 1, "pid": 1}'
    bad = [good, b"{}", b"[" * 20000, b'{"kind": []}', good + b" " * 40000, b"\\xff\\xfe", b"null"]
    bad += [random.randbytes(random.randrange(1, 300)) for _ in range(200)]
    held = []
    for blob in bad:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(name)
        sock.send(blob)
        held.append(sock)
        if len(held) > 20:
            held.pop(0).close()
links = meet()
out(links.job_id)
""")
    results = run_ranks(2, body)
    assert results[0].outs == results[1].outs


def test_a_stranger_on_the_name_is_reported() -> None:
    body = script("""
if RANK == 0:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(socket_name(read_job(), ""))
    sock.listen()
    peer, _ = sock.accept()
    peer.send(b"220 mail.example.org ESMTP")
    peer.recv(1)
else:
    with failing():
        meet()
""")
    error = run_ranks(2, body)[1].exception
    assert "is not rank 0 of a paceline job" in error["text"]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@needs_root
def test_another_user_is_not_let_in() -> None:
    body = script("""
if RANK == 1:
    name = socket_name(read_job(), "")
    time.sleep(0.3)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(name)
        try:
            sock.send(b"x")
            got = sock.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            got = b""
        os._exit(0 if got == b"" else 1)
    assert os.waitpid(pid, 0)[1] == 0
out(meet().job_id)
""")
    first, second = run_ranks(2, body)
    assert first.outs == second.outs


@needs_root
def test_another_user_on_the_name_is_named() -> None:
    body = script("""
name = socket_name(read_job(), "")
if RANK == 0:
    os.setuid(65534)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(name)
    sock.listen()
    mark("listens")
    sock.accept()[0].recv(1)
else:
    with failing():
        meet()
""")
    error = run_ranks(2, body)[1].exception
    assert "is used by another user" in error["text"]


def test_ctrl_c_while_waiting() -> None:
    body = script("""
if RANK == 1:
    mark("going")
    with failing():
        meet()
""")
    results = run_ranks(2, body, breaks=[Break(1, "going", signal.SIGINT, delay_s=0.2)])
    error = results[1].exception
    assert error["type"] == "KeyboardInterrupt"
    assert error["at"] - results[1].broken_at < 0.5
