# SPDX-License-Identifier: Apache-2.0
"""H5 and A8 for worker processes of a DataLoader: none hangs, none is left, errors say enough."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest

from harness import Ranks, run_ranks, tagged

HEAD = """
import gc, os, signal, sys, threading, time
import paceline
from paceline.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from rankside import ARGS, RANK, WORLD, mark, out, report

class Own(Exception):
    pass

class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)

class Data(Dataset):
    def __init__(self, fault, n=40):
        self.fault, self.n = fault, n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        if i == 21:
            self.fault()
        return paceline.full((100,), float(i))

def children():
    me, found = str(os.getpid()), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[1] == me:
                    found.append(int(pid))
        except OSError:
            pass
    return found

def attempt(loader):
    began = time.monotonic()
    try:
        for batch in loader:
            pass
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "nothing", "", 0.0
"""


def alone(body: str, timeout: float = 40.0, **args):
    """Run a script in one process; give what it told."""
    (result,) = run_ranks(1, HEAD + textwrap.dedent(body), timeout=timeout, args=args)
    return result


def test_a_worker_that_dies_is_named_at_once() -> None:
    result = alone("""
    reader, writer = os.pipe()
    def dying(end):
        def fault():
            os.write(writer, f"{time.monotonic():32.6f}".encode())
            end()
        return fault
    def by(sig):
        def end():
            if sig != signal.SIGKILL:
                signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        return end
    def with_grandchild():  # which holds everything open: that does not hide the death
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    ends = [by(sig) for sig in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)]
    for end in (*ends, lambda: os._exit(3), with_grandchild):
        iterator = iter(DataLoader(Data(dying(end)), batch_size=4, num_workers=2))
        kind, text, _ = attempt(iterator)
        told = time.monotonic()
        again = attempt(iterator)[:2] == (kind, text)  # whoever asks again is told again
        del iterator
        out([kind, text, told - float(os.read(reader, 32)), again, children()])
    """)
    signals = ["signal 9 (SIGKILL)", "signal 11 (SIGSEGV)", "signal 15 (SIGTERM)"]
    hows = [*signals, "exit code 3", signals[0]]
    for (kind, text, took, again, left), how in zip(result.outs, hows, strict=True):
        assert kind == "RuntimeError"
        assert "[DataLoader] worker 1 (pid " in text
        assert how in text
        assert took < 2 * 1.0  # promised: a second
        assert again
        assert left == []


def test_an_exception_arrives_as_it_was() -> None:
    result = alone("""
    def throw(error):
        def fault():
            raise error
        return fault
    def local():
        class Hidden(Exception):
            pass
        raise Hidden("in here")
    faults = [throw(e) for e in (ValueError("bad row"), KeyError("a\\nb"), Own("mine"),
                                 TwoArguments(1, 2), StopIteration(), MemoryError("much"))]
    for fault in (*faults, local):
        out(attempt(DataLoader(Data(fault), batch_size=4, num_workers=2)))
    # The loader goes on after it, as without workers.
    iterator = iter(DataLoader(Data(throw(ValueError("bad row"))), batch_size=4, num_workers=2))
    got = []
    while True:
        try:
            got.append(next(iterator)[0, 0].item())
        except ValueError:
            got.append("error")
        except StopIteration:
            break
    out(got)
    out(children())
    """)
    *told, got, left = result.outs
    classes = [
        "ValueError",
        "KeyError",
        "Own",
        *["RuntimeError"] * 2,
        "MemoryError",
        "RuntimeError",
    ]
    names = [
        "ValueError",
        "KeyError",
        "Own",
        "TwoArguments",
        "StopIteration",
        "MemoryError",
        "Hidden",
    ]
    for (kind, text, _), expected, name in zip(told, classes, names, strict=True):
        assert kind == expected
        assert "Caught " in text
        assert name in text.splitlines()[0]
        assert text.splitlines()[0].endswith("in DataLoader worker process 1.")
        assert "Original Traceback (most recent call last):" in text
        assert "the sample being read: 21" in text
        assert "worker 1 (pid " in text
        assert ", batch 5" in text
    assert "ValueError: bad row" in told[0][1]
    assert "in fault" in told[0][1]
    assert got == [0, 4, 8, 12, 16, "error", 24, 28, 32, 36]
    assert left == []


def test_what_a_worker_cannot_send_is_an_error() -> None:
    result = alone("""
    class Unpicklable(Data):
        def __getitem__(self, i):
            return lambda: i
    out(attempt(DataLoader(Unpicklable(None), collate_fn=lambda s: s, num_workers=1)))
    def init(worker):
        raise LookupError("no file")
    out(attempt(DataLoader(Data(None), num_workers=2, worker_init_fn=init)))
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1
            raise OSError("gone")
    out(attempt(DataLoader(Stream(), num_workers=2)))
    class NoStream(IterableDataset):
        def __iter__(self):
            raise OSError("never there")
    out(attempt(DataLoader(NoStream(), num_workers=2)))
    """)
    for told, kind, text in zip(
        result.outs,
        ["AttributeError", "LookupError", "OSError", "OSError"],
        ["Can't pickle", "no file", "gone", "never there"],
        strict=True,
    ):
        assert told[0] == kind
        assert text in told[1]


def test_a_worker_that_hangs_is_shown() -> None:
    result = alone("""
    def stuck_here():
        time.sleep(100)
    loader = DataLoader(Data(stuck_here), batch_size=4, num_workers=2, timeout=1)
    out([*attempt(loader), children()])
    import warnings
    from paceline.utils.data import parallel
    parallel._STUCK_S = 0.3
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        told = attempt(DataLoader(Data(lambda: time.sleep(1)), batch_size=4, num_workers=2))
    out([*told, [str(w.message) for w in seen]])
    """)
    (kind, text, took, left), (nothing, _, _, warned) = result.outs
    assert kind == "RuntimeError"
    assert "DataLoader timed out after 1 seconds: worker 1 (pid " in text
    assert "in stuck_here" in text  # where it is
    assert 1.0 <= took < 3.0
    assert left == []  # it was killed
    assert nothing == "nothing"  # it went on
    assert len(warned) == 1
    assert "has given no batch for 0.3 s" in warned[0]


@pytest.mark.parametrize("way", ["main", "thread", "forkserver", "spawn"])
def test_workers_die_with_their_process(way: str) -> None:
    body = HEAD + textwrap.dedent("""
    def serve():
        options = {} if ARGS["way"] in ("main", "thread") else {
            "multiprocessing_context": ARGS["way"]}
        data = Sleeper()
        iterators = [iter(DataLoader(data, num_workers=2, **options)) for _ in range(2)]
        for iterator in iterators:
            next(iterator)
        mark("there")
        time.sleep(60)
    class Sleeper(Dataset):
        def __len__(self):
            return 100
        def __getitem__(self, i):
            if i > 2:
                time.sleep(60)
            return i
    if __name__ == "__main__":
        if ARGS["way"] == "thread":
            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()
        else:
            serve()
    """)
    with Ranks(1, body, args={"way": way}) as ranks:
        ranks.await_mark(0, "there", 30)
        assert len(tagged(ranks.tag)) >= 5
        ranks.hit(0, signal.SIGKILL)
        deadline = time.monotonic() + 1.0
        while (left := set(tagged(ranks.tag))) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not {pid for pid in left if is_alive(pid)}


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_thread_that_ends_takes_no_workers_with_it() -> None:
    result = alone("""
    loader = DataLoader(Data(lambda: None), batch_size=4, num_workers=2, persistent_workers=True)
    thread = threading.Thread(target=lambda: attempt(loader))
    thread.start()
    thread.join()
    time.sleep(0.3)
    out([len(list(loader)), len(children())])
    """)
    assert result.outs == [[10, 2]]


@pytest.mark.parametrize("to", ["process", "group"])
def test_ctrl_c_while_waiting_for_a_batch(to: str) -> None:
    body = HEAD + textwrap.dedent("""
    def fault():
        mark("busy")
        time.sleep(60)
    def go():
        for batch in DataLoader(Data(fault), batch_size=4, num_workers=2):
            pass
    try:
        go()
    except KeyboardInterrupt as error:
        report(error)
        error.__traceback__ = None
    gc.collect()
    out(children())
    """)
    with Ranks(1, body) as ranks:
        ranks.await_mark(0, "busy")
        time.sleep(0.3)
        if to == "group":
            began = time.monotonic()
            os.killpg(ranks.ranks[0].process.pid, signal.SIGINT)
        else:
            began = ranks.hit(0, signal.SIGINT)
        ranks.wait(10)
        ranks.check({})
        rank = ranks.ranks[0]
        assert rank.exception["type"] == "KeyboardInterrupt"
        assert rank.exception["at"] - began < 0.5
        assert rank.outs == [[]]
        assert rank.stderr == ""  # workers print no tracebacks of their own
        assert time.monotonic() - began < 4


def test_workers_in_a_group_hold_nothing_of_it() -> None:
    body = HEAD + textwrap.dedent("""
    import numpy as np
    import paceline.distributed as dist
    class Asks(Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, i):
            sockets = sum("socket" in os.readlink(f"/proc/self/fd/{fd}")
                          for fd in os.listdir("/proc/self/fd")
                          if os.path.exists(f"/proc/self/fd/{fd}")
                          or os.path.islink(f"/proc/self/fd/{fd}"))
            try:
                dist.all_reduce(np.ones(3))
            except RuntimeError as error:
                return sockets, str(error)
            return sockets, "no error"
    if __name__ == "__main__":
        dist.init_process_group()
        for _ in range(2):
            told = list(DataLoader(Asks(), num_workers=2, batch_size=None))
            x = np.ones(1 << 20)
            dist.all_reduce(x)
            assert x[0] == WORLD
        out([told, os.getpid()])
        dist.barrier()
    """)
    for result in run_ranks(2, body):
        ((told, pid),) = result.outs
        for sockets, text in told:
            assert sockets == 1  # its own to the loader
            assert f"belongs to process {pid}" in text


def test_a_killed_worker_is_its_rank_s_error() -> None:
    body = HEAD + textwrap.dedent("""
    import paceline.distributed as dist
    from rankside import failing
    if __name__ == "__main__":
        dist.init_process_group()
        def fault():
            os.kill(os.getpid(), 9)
        with failing():
            for batch in DataLoader(Data(fault if RANK else lambda: None), num_workers=1):
                dist.all_reduce(batch)
            dist.barrier()
    """)
    results = run_ranks(2, body)
    assert "killed by signal 9" in results[1].exceptions[0]["text"]
    assert results[0].exceptions[0]["dead_ranks"] == [1]
