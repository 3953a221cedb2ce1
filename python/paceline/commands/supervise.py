# SPDX-License-Identifier: Apache-2.0
"""Starts the ranks of one machine, passes their text on, and ends them together.

Used by ``paceline launch`` and by ``notebook_launcher``. Standard library only. Runs in one
thread; a rank leads a session of its own, so that signals from the terminal reach it once, from
here, and so that what it started can be found and ended.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from . import reaper
from .rank_process import Outcome, Policy, Rank, RankCommand, anonymous_file, child_setup
from .streams import Hold, Sink, Stream
from .verdict import Ending, name_from_traceback, read_report, root_cause

__all__ = ["Outcome", "Policy", "RankCommand", "Supervisor"]

_LEAVE_S = 0.25  # what a rank started may finish its own clean-up in, before SIGKILL
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Supervisor:
    """Runs one job to its end.

    Parameters
    ----------
    commands : sequence of RankCommand
        One per rank.
    launch_id : str
        The PACELINE_LAUNCH_ID in their environment.
    sinks : tuple of Sink, optional
        Where stdout and stderr of the ranks go; None lets them write to those of this process.
    policy : Policy
        Times and manners.
    open_stream : callable, optional
        Makes a pair of descriptors (read, write) for stream 1 or 2; pipes by default.
    """

    def __init__(
        self,
        commands: Sequence[RankCommand],
        launch_id: str,
        sinks: tuple[Sink, Sink] | None,
        policy: Policy,
        open_stream: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        self._commands = commands
        self._launch_id = launch_id
        self._sinks = sinks
        self._policy = policy
        self._open_stream = open_stream or (lambda _: os.pipe())
        self._selector = selectors.DefaultSelector()
        self._ranks: list[Rank] = []
        self._reaper: subprocess.Popen[bytes] | None = None
        self._reaper_fd = -1
        self._plan: list[tuple[float, Callable[[], None]]] = []
        self._signals: list[int] = []
        self._signal = 0
        self._failing = False
        self._deadline: float | None = None
        self._restore_signals: Callable[[], None] = lambda: None

    # --- the life of a job -----------------------------------------------------------------------

    def run(self) -> Outcome:
        """Start all ranks and wait until all have ended.

        Returns
        -------
        Outcome
            How they ended. No process of the job is left.
        """
        try:
            if self._policy.own_process:
                self._take_signals()
            self._start_reaper()
            for number, command in enumerate(self._commands):
                self._start(self._policy.first_rank + number, command)
            if self._policy.timeout_s is not None:
                self._deadline = time.monotonic() + self._policy.timeout_s
            while any(rank.ending is None for rank in self._ranks):
                try:
                    self._step()
                except KeyboardInterrupt:  # in a notebook; here SIGINT has no handler of ours
                    self._on_signal(signal.SIGINT)
            return self._finish()
        finally:
            self._close()

    def stopping(self) -> bool:
        """Tell whether the job is being ended, so that nobody waits for a slow reader."""
        return bool(self._signals or self._signal or self._failing)

    def _start_reaper(self) -> None:
        if sys.platform != "linux":
            return
        argv = [sys.executable, "-I", "-S", reaper.__file__, self._launch_id, str(os.getpid())]
        self._reaper = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
            cwd="/",
        )
        with suppress(AttributeError, OSError):
            fd = self._reaper_fd = os.pidfd_open(self._reaper.pid)
            self._selector.register(fd, selectors.EVENT_READ, self._replace_reaper)
        for rank in self._ranks:
            self._name_to_reaper(rank.process.pid)

    def _name_to_reaper(self, session: int) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            with suppress(OSError):  # it was just killed: a new one will be told
                self._reaper.stdin.write(b"%d\n" % session)

    def _end_reaper(self) -> None:
        if self._reaper_fd >= 0:
            self._selector.unregister(self._reaper_fd)
            os.close(self._reaper_fd)
            self._reaper_fd = -1
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.wait()
            if self._reaper.stdin is not None:
                self._reaper.stdin.close()
            self._reaper = None

    def _replace_reaper(self) -> None:
        """Start a new one where somebody has killed it."""
        self._end_reaper()
        self._start_reaper()

    def _start(self, number: int, command: RankCommand) -> None:
        report_fd = anonymous_file()
        env = dict(command.env)
        env["PACELINE_ERROR_FILE"] = f"/proc/{os.getpid()}/fd/{report_fd}"
        pairs = [self._open_stream(n) for n in (1, 2)] if self._sinks else []
        outputs: list[int | None] = [pair[1] for pair in pairs] or [None, None]
        stdin = None if number == 0 and self._policy.stdin else subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                list(command.argv),
                env=env,
                stdin=stdin,
                stdout=outputs[0],
                stderr=outputs[1],
                pass_fds=command.pass_fds,
                start_new_session=True,
                preexec_fn=child_setup(command.cpus) if self._policy.own_process else None,
            )
        except BaseException:
            for fd in [report_fd, *(pair[0] for pair in pairs)]:
                os.close(fd)
            raise
        finally:
            for pair in pairs:
                os.close(pair[1])
        rank = Rank(number, process, report_fd)
        self._ranks.append(rank)
        self._name_to_reaper(process.pid)
        self._watch(rank, [pair[0] for pair in pairs], command.copy_fds)

    def _watch(self, rank: Rank, fds: Sequence[int], copy_fds: Sequence[int]) -> None:
        prefix = f"[rank {rank.number}] ".encode() if rank.number > 0 else b""
        for at, fd in enumerate(fds):
            assert self._sinks is not None
            hold = Hold.NOTHING if at == 0 else Hold.REPORTS if rank.number == 0 else Hold.ALL
            prefixed = prefix if at else b""
            stream = Stream(fd, self._sinks[at], prefixed, hold, copy_fds[at])
            rank.streams.append(stream)
            self._selector.register(fd, selectors.EVENT_READ, lambda s=stream: self._read(s))
        try:
            rank.pidfd = os.pidfd_open(rank.process.pid)
            self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda: self._look(rank))
        except (AttributeError, OSError):
            rank.pidfd = -1  # an old kernel: _step polls

    def _step(self) -> None:
        """Wait for one round of events and act on them."""
        for key, _ in self._selector.select(self._timeout()):
            key.data()
        while self._signals:
            self._on_signal(self._signals.pop(0))
        now = time.monotonic()
        for rank in self._ranks:
            self._look_for_report(rank)
            if rank.pidfd < 0 and rank.ending is None:
                self._look(rank)
            for stream in rank.streams:
                stream.tick(now, self._failing or bool(self._signal))
        while self._plan and self._plan[0][0] <= now:
            self._plan.pop(0)[1]()
        if self._deadline is not None and self._deadline <= now:
            self._deadline = None
            self._on_signal(signal.SIGABRT)

    def _timeout(self) -> float | None:
        due = [self._plan[0][0]] if self._plan else []
        due += [] if self._deadline is None else [self._deadline]
        times = [max(0.0, at - time.monotonic()) for at in due]
        if any(stream.restless for rank in self._ranks for stream in rank.streams):
            times.append(0.05)
        if any(rank.pidfd < 0 and rank.ending is None for rank in self._ranks):
            times.append(0.02)
        return min(times) if times else None

    def _read(self, stream: Stream) -> None:
        if not stream.read():
            self._selector.unregister(stream)
            stream.close()

    # --- the end of a rank -----------------------------------------------------------------------

    def _look_for_report(self, rank: Rank) -> None:
        if rank.failed_at is not None or os.fstat(rank.report_fd).st_size == 0:
            return
        report = read_report(rank.report_fd)
        if report is not None:
            rank.kind, rank.message, at = report
            rank.failed_at = time.monotonic() if at is None else at
            self._failing = True  # it is about to print a traceback, and then its peers

    def _look(self, rank: Rank) -> None:
        code = rank.process.poll()
        if code is None or rank.ending is not None:
            return
        if rank.pidfd >= 0:
            self._selector.unregister(rank.pidfd)
            os.close(rank.pidfd)
            rank.pidfd = -1
        self._look_for_report(rank)
        for stream in rank.streams:
            if stream.fd >= 0:
                stream.drain()
        at = rank.failed_at if rank.failed_at is not None else time.monotonic()
        rank.ending = Ending(rank.number, rank.process.pid, code, at, rank.told, rank.stopped)
        if code == 0:
            for stream in rank.streams:
                stream.release()
            return
        text = b"".join(stream.take_report(not rank.told) for stream in rank.streams)
        kind, message = name_from_traceback(text)
        rank.ending.kind, rank.ending.message = rank.kind or kind, rank.message or message
        rank.ending.text = text
        if not self._failing_or_stopping():
            self._after_failure()
        self._failing = True

    def _failing_or_stopping(self) -> bool:
        return bool(self._plan) or bool(self._signal)

    def _after_failure(self) -> None:
        """Let the peers of a failed rank say what they have to say, then stop them."""
        now = time.monotonic()
        self._plan = [
            (now + self._policy.failure_grace_s, lambda: self._tell(signal.SIGTERM)),
            (now + self._policy.failure_grace_s + self._policy.grace_s, self._kill),
        ]

    def _tell(self, number: int) -> None:
        for rank in self._running():
            rank.process.send_signal(number)
            rank.process.send_signal(signal.SIGCONT)  # a stopped process would not hear

    def _kill(self) -> None:
        for rank in self._running():
            with suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)

    def _running(self) -> list[Rank]:
        """List the ranks that are to be ended now, and note that they are."""
        running = [rank for rank in self._ranks if rank.ending is None]
        for rank in running:
            rank.stopped = True
            rank.told = rank.failed_at is None
        return running

    # --- signals ---------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        """Collect the signals to this process, to pass them on from the loop."""
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w):
            os.set_blocking(fd, False)

        def drain() -> None:
            with suppress(BlockingIOError):
                os.read(wake_r, 4096)

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        self._selector.register(wake_r, selectors.EVENT_READ, drain)
        old_fd = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(old_fd)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(wake_r)
            os.close(wake_w)

        handlers = {}
        for name in (*_FORWARDED, "SIGTSTP"):
            number = getattr(signal, name)
            if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # under nohup
            handlers[number] = signal.signal(number, note)
        self._restore_signals = restore

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            for rank in self._ranks:
                rank.process.send_signal(number)
        elif number == signal.SIGTSTP:
            self._pause()
        elif number == signal.SIGINT and self._signal == signal.SIGINT:
            self._kill()  # asked twice
        elif not self._signal:
            self._signal = number
            short = number in (signal.SIGINT, signal.SIGABRT)
            grace_s = self._policy.interrupt_grace_s if short else self._policy.grace_s
            self._plan = [(time.monotonic() + grace_s, self._kill)]
            self._tell(number)
        elif number == signal.SIGINT:
            self._plan = [(time.monotonic() + self._policy.interrupt_grace_s, self._kill)]

    def _pause(self) -> None:
        """Ctrl-Z: stop the ranks, then this process, and go on together."""
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in self._ranks:
                with suppress(ProcessLookupError):
                    os.killpg(rank.process.pid, number)
            if number == signal.SIGSTOP:
                os.kill(os.getpid(), signal.SIGSTOP)

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self) -> Outcome:
        endings = tuple(rank.ending for rank in self._ranks if rank.ending is not None)
        root = root_cause(endings)
        clean = root is None and not self._signal
        # On a clean end a process that made a session of its own was meant to stay.
        self._sweep(None if clean else self._launch_id)
        return Outcome(endings, root, self._signal)

    def _sweep(self, launch_id: str | None) -> None:
        """End what the ranks have left behind, after a moment for their own clean-up."""
        sessions = {rank.process.pid for rank in self._ranks}
        deadline = time.monotonic() + _LEAVE_S
        while reaper.find(sessions, launch_id):
            own_clean_up_over = time.monotonic() > deadline
            if own_clean_up_over:
                reaper.kill_all(sessions, launch_id, timeout_s=1.0)
                return
            time.sleep(0.01)

    def _close(self) -> None:
        for rank in self._ranks:
            if rank.ending is None:  # we were interrupted by an exception
                rank.process.kill()
                rank.process.wait()
        if any(rank.ending is None for rank in self._ranks):
            self._sweep(self._launch_id)
        for rank in self._ranks:
            for stream in rank.streams:
                if stream.fd >= 0:
                    stream.release()
                    stream.close()
            os.close(rank.report_fd)
            if rank.pidfd >= 0:
                os.close(rank.pidfd)
        self._end_reaper()
        self._restore_signals()
        self._selector.close()
