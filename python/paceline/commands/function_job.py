# SPDX-License-Identifier: Apache-2.0
"""Runs a function on several fresh interpreters and collects what became of it.

Under ``notebook_launcher`` and ``paceline.testing.run_ranks``; knows neither.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import notebook_rank, shipping
from .cores import share_out
from .job import Settings, rank_environment
from .streams import TextSink
from .supervise import Outcome, Policy, RankCommand, Supervisor
from .verdict import summary

__all__ = ["FunctionJob", "RankTraceback", "raise_root", "traceback_of"]


class RankTraceback(Exception):
    """The traceback of an exception in the rank that raised it; the cause of its copy here."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f"in rank {rank}:\n\n{text}")


@dataclass(frozen=True)
class FunctionJob:
    """What to run, and how.

    Attributes
    ----------
    function : callable
        Called in each rank.
    args : tuple
        Its arguments.
    settings : Settings
        How many ranks, and what they are told.
    extra : mapping
        Further environment.
    caller : str
        Who is to stand in front of an error.
    by_value : bool
        Send the function's module by value although it could be imported.
    all_results : bool
        Send back what every rank returned, not only rank 0.
    timeout_s : float, optional
        After this long all ranks show where they are, and end.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    settings: Settings
    extra: Mapping[str, str] = field(default_factory=dict)
    caller: str = "notebook_launcher"
    by_value: bool = False
    all_results: bool = False
    timeout_s: float | None = None

    def run(self) -> tuple[Outcome, list[bytes]]:
        """Run it to its end.

        Returns
        -------
        Outcome
            How the ranks ended.
        list of bytes
            By rank, what it sent back; see ``notebook_rank``.

        Raises
        ------
        TypeError
            Something that the function uses cannot be sent; the text names it.
        """
        payload = shipping.pack(self.function, self.args, self.by_value, self.caller)
        world = self.settings.num_processes
        with ExitStack() as stack:
            source = stack.enter_context(tempfile.TemporaryFile())  # no name, nothing left behind
            source.write(payload)
            source.flush()
            results = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(world)]
            launch_id = os.urandom(16).hex()
            commands = self._commands(launch_id, source.fileno(), [f.fileno() for f in results])
            sys.stdout.flush()
            sys.stderr.flush()
            sinks = (TextSink(sys.stdout), TextSink(sys.stderr))
            policy = Policy(own_process=False, stdin=False, timeout_s=self.timeout_s)
            outcome = Supervisor(commands, launch_id, sinks, policy).run()
            return outcome, [os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0) for f in results]

    def _commands(
        self, launch_id: str, source_fd: int, result_fds: Sequence[int]
    ) -> list[RankCommand]:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        world = self.settings.num_processes
        shares = share_out(world, int(threads) if threads.isdigit() else None)
        commands = []
        for rank, share in enumerate(shares):
            env = rank_environment(self.settings, rank, launch_id, os.environ) | dict(self.extra)
            env["OMP_NUM_THREADS"] = str(share.threads)
            cpus = ",".join(str(cpu) for cpu in sorted(share.cpus))
            fds = (source_fd, result_fds[rank])
            answers = "answer" if self.all_results or rank == 0 else "silent"
            words = [str(fds[0]), str(fds[1]), str(os.getpid()), cpus, answers]
            # -P: the folder of that file is not to be searched for modules.
            argv = [sys.executable, "-u", "-P", notebook_rank.__file__, *words]
            commands.append(RankCommand(argv, env, pass_fds=fds))
        return commands


def traceback_of(outcome: Outcome) -> RankTraceback | None:
    """Give the traceback of the first interrupted rank that has one."""
    for ending in sorted(outcome.endings, key=lambda ending: ending.kind != "KeyboardInterrupt"):
        if ending.text:
            return RankTraceback(ending.rank, ending.text.decode(errors="replace"))
    return None


def raise_root(caller: str, outcome: Outcome, answers: Sequence[bytes]) -> NoReturn:
    """Raise what the first rank to fail raised, or say how it ended."""
    root = outcome.root
    assert root is not None
    answer = answers[root.rank]
    lines = summary(root, outcome.endings)
    if answer[:1] == b"E":
        error, kind, message, text = pickle.loads(answer[1:])
        if error is None:
            error = RuntimeError(f"{kind}: {message}")
        error.add_note(f"raised in rank {root.rank} of {len(outcome.endings)}")
        for line in lines[1:]:
            error.add_note(line)
        raise error from RankTraceback(root.rank, text)
    text = root.text.decode(errors="replace").strip()
    raise RuntimeError(f"[{caller}] {'; '.join(lines)}" + (f"\n\n{text}" if text else ""))
