# SPDX-License-Identifier: Apache-2.0
"""Runs a script on several ranks, each a fresh interpreter, and can break them on purpose.

``run_ranks(n, body)`` takes a function without free variables (its source is shipped) or the text
of a script. It fails unless every rank ends with the expected code; a code below 0 (a signal) is
a failure too. On a failure it shows what each rank wrote. Whatever happens, no process is left.

Ranks use ``rankside`` to say how far they are; ``Break`` names a signal that one rank gets when
it has said so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import warm

TAG = "PACELINE_TEST_TAG"
_POLL_S = 0.005
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
_ABORT_GRACE_S = 2.0


@dataclass(frozen=True)
class Break:
    """Send `sig` to `rank` once it has printed ``MARK ... mark`` and `delay_s` have passed."""

    rank: int
    mark: str
    sig: int = signal.SIGKILL
    delay_s: float = 0.0


@dataclass
class Rank:
    """What one rank did."""

    rank: int
    process: subprocess.Popen[bytes] | warm.Forked
    stdout_path: Path
    stderr_path: Path
    broken_at: float = 0.0  # when a Break hit it, on the monotonic clock

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        return self.process.poll()

    @property
    def stdout(self) -> str:
        """What it wrote so far."""
        return self.stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote so far."""
        return self.stderr_path.read_text(errors="replace")

    def _lines(self, word: str) -> list[str]:
        return [s[len(word) + 1 :] for s in self.stdout.splitlines() if s.startswith(word + " ")]

    @property
    def outs(self) -> list[Any]:
        """Values given to ``rankside.out``."""
        return [json.loads(line) for line in self._lines("OUT")]

    @property
    def marks(self) -> dict[str, float]:
        """Time at which each mark was passed first."""
        marks: dict[str, float] = {}
        for line in self._lines("MARK"):
            at, name = line.split(" ", 1)
            marks.setdefault(name, float(at))
        return marks

    @property
    def exceptions(self) -> list[dict[str, Any]]:
        """What was given to ``rankside.report``; ``at`` is the time."""
        found = []
        for line in self._lines("EXC"):
            at, text = line.split(" ", 1)
            found.append({**json.loads(text), "at": float(at)})
        return found

    @property
    def exception(self) -> dict[str, Any]:
        """The one exception that it reported."""
        found = self.exceptions
        assert len(found) == 1, f"rank {self.rank} reported {len(found)} exceptions\n{self}"
        return found[0]

    def __str__(self) -> str:
        state = "still running" if self.returncode is None else f"exit code {self.returncode}"
        head = f"----- rank {self.rank} (pid {self.process.pid}): {state}"
        return f"{head}\n{self.stdout[-4000:]}{head}, stderr\n{self.stderr[-6000:]}"


@dataclass
class Ranks:
    """Running ranks; a context that leaves no process behind."""

    n: int
    body: Callable[..., object] | str
    env: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    env_of: Callable[[int], Mapping[str, str]] = lambda rank: {}
    prefix_of: Callable[[int], Sequence[str]] = lambda rank: ()
    with_torch: bool = False
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    ranks: list[Rank] = field(default_factory=list)

    def __enter__(self) -> Ranks:
        self._dir = tempfile.TemporaryDirectory(prefix="ranks-")
        script = Path(self._dir.name) / "script.py"
        script.write_text(_source(self.body))
        for rank in range(self.n):
            self.ranks.append(self._start(rank, script))
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)
            rank.process.wait()
        for pid in tagged(self.tag):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._dir.cleanup()

    def _start(self, rank: int, script: Path) -> Rank:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.n),
            "LOCAL_WORLD_SIZE": str(self.n),
            "PACELINE_RUN_ID": self.tag,
            "PACELINE_INIT_TIMEOUT": "20",
            "PACELINE_TEST_ARGS": json.dumps(dict(self.args)),
            "PYTHONPATH": os.pathsep.join([*_paths(), *filter(None, [env.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            TAG: self.tag,
            **self.env,
            **self.env_of(rank),
        }
        here = Path(self._dir.name)
        out, err = here / f"{rank}.out", here / f"{rank}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = self._process(rank, script, env, stdout, stderr)
        return Rank(rank, process, out, err)

    def _process(
        self, rank: int, script: Path, env: dict[str, str], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes] | warm.Forked:
        if self.with_torch:
            return warm.start(script, env, stdout, stderr)
        return subprocess.Popen(
            [*self.prefix_of(rank), sys.executable, "-X", "faulthandler", str(script)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def await_mark(self, rank: int, mark: str, timeout: float = 20.0) -> float:
        """Wait until a rank has passed a mark; its time."""
        deadline = time.monotonic() + timeout
        while mark not in self.ranks[rank].marks:
            ended = self.ranks[rank].returncode is not None
            assert not ended, f"rank {rank} ended before its mark {mark!r}\n{self}"
            assert time.monotonic() < deadline, f"rank {rank} never came to {mark!r}\n{self}"
            time.sleep(_POLL_S)
        return self.ranks[rank].marks[mark]

    def hit(self, rank: int, sig: int) -> float:
        """Send a signal now; the time just before."""
        self.ranks[rank].broken_at = time.monotonic()
        os.kill(self.ranks[rank].process.pid, sig)
        return self.ranks[rank].broken_at

    def wait(self, timeout: float = 30.0, only: Iterable[int] | None = None) -> None:
        """Wait until ranks have ended; at the deadline show where each thread was and fail."""
        chosen = [self.ranks[rank] for rank in (range(self.n) if only is None else only)]
        deadline = time.monotonic() + timeout
        while any(rank.returncode is None for rank in chosen):
            if time.monotonic() > deadline:
                self._abort(chosen)
                raise AssertionError(f"ranks still ran after {timeout:g} s\n{self}")
            time.sleep(_POLL_S)

    def _abort(self, chosen: Sequence[Rank]) -> None:
        # faulthandler writes every thread's stack on SIGABRT; a stopped process must go on for it.
        for sig in (signal.SIGABRT, signal.SIGCONT):
            for rank in chosen:
                if rank.returncode is None:
                    rank.process.send_signal(sig)
        deadline = time.monotonic() + _ABORT_GRACE_S
        while any(r.returncode is None for r in chosen) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def check(self, expect: Mapping[int, int] | None = None) -> None:
        """Fail unless each rank ended with the expected code, 0 where none is given."""
        codes = {rank.rank: rank.returncode for rank in self.ranks}
        wanted = {rank: (expect or {}).get(rank, 0) for rank in codes}
        assert codes == wanted, f"exit codes {codes}, expected {wanted}\n{self}"

    def __str__(self) -> str:
        return "\n".join(map(str, self.ranks))


@dataclass(frozen=True)
class Result:
    """What one rank left behind when all had ended."""

    rank: int
    returncode: int
    stdout: str
    stderr: str
    outs: list[Any]
    marks: dict[str, float]
    exceptions: list[dict[str, Any]]
    broken_at: float

    @property
    def exception(self) -> dict[str, Any]:
        """The one exception that it reported."""
        assert len(self.exceptions) == 1, f"rank {self.rank}: {self.exceptions}\n{self.stderr}"
        return self.exceptions[0]


def run_ranks(
    n: int,
    body: Callable[..., object] | str,
    *,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    env_of: Callable[[int], Mapping[str, str]] | None = None,
    args: Mapping[str, Any] | None = None,
    breaks: Sequence[Break] = (),
    expect: Mapping[int, int] | None = None,
    with_torch: bool = False,
) -> list[Result]:
    """Run `body` on `n` ranks and return what each left behind.

    Parameters
    ----------
    n : int
        World size.
    body : callable or str
        A function whose source is shipped (imports inside), or the text of a script.
    timeout : float
        Seconds for the whole; then each rank's stacks are shown and the call fails.
    env, env_of : mapping, callable
        Further environment, of all ranks or by rank.
    args : mapping
        JSON values, ``rankside.ARGS`` over there.
    breaks : sequence of Break
        Signals to send, in this order.
    expect : mapping
        Exit code by rank where it is not 0.
    with_torch : bool
        Begin with PyTorch loaded, in a tenth of the time; see ``warm``.
    """
    with Ranks(
        n, body, env or {}, args or {}, env_of or (lambda rank: {}), with_torch=with_torch
    ) as ranks:
        for fault in breaks:
            ranks.await_mark(fault.rank, fault.mark, timeout)
            time.sleep(fault.delay_s)
            ranks.hit(fault.rank, fault.sig)
        ranks.wait(timeout)
        ranks.check(expect)
        return [_result(rank) for rank in ranks.ranks]


def _result(rank: Rank) -> Result:
    code = rank.returncode
    assert code is not None
    return Result(
        rank.rank,
        code,
        rank.stdout,
        rank.stderr,
        rank.outs,
        rank.marks,
        rank.exceptions,
        rank.broken_at,
    )


def _source(body: Callable[..., object] | str) -> str:
    if isinstance(body, str):
        return textwrap.dedent(body)
    source = textwrap.dedent(inspect.getsource(body))
    return f"{source}\n\nif __name__ == '__main__':\n    {body.__name__}()\n"


def _paths() -> list[str]:
    spec = importlib.util.find_spec("paceline")
    assert spec is not None, "paceline is not importable"
    assert spec.submodule_search_locations is not None
    package = Path(next(iter(spec.submodule_search_locations)))
    return [str(package.parent), str(Path(__file__).parent)]


def run_program(
    *command: str, cwd: Path, timeout: float = 110, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter as a user would: not as a rank of the tests, paceline importable.

    Fails the test, with all that was printed, unless it ends with 0.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | variables
    env["PYTHONPATH"] = os.pathsep.join([*_paths(), env.get("PYTHONPATH", "")])
    argv = [sys.executable, *command]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tagged(tag: str) -> list[int]:
    """Processes whose environment carries the tag, wherever they were reparented to."""
    needle = f"{TAG}={tag}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def names() -> set[str]:
    """Names that a job could leave behind: shared memory, sockets of ours, files of ours."""
    found = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    found |= {f"/tmp/{name}" for name in os.listdir("/tmp") if "paceline" in name}
    for line in Path("/proc/net/unix").read_text().splitlines():
        if "paceline" in line:
            found.add(line.split()[-1])
    return found
