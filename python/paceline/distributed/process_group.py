# SPDX-License-Identifier: Apache-2.0
"""The process group: the ranks of a job, and the collectives among them.

An object that one can have two of; the default one, and the functions with PyTorch's names, are in
``functions.py``. It brings the control plane (the rendezvous) and the data plane (``_C.Group``)
together and holds no algorithm of either.

Every method takes a private `depth`: how many frames of paceline stand between it and the user's
call, so that the core can name the user's line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from paceline import _C, _version
from paceline.distributed import lifecycle, objects
from paceline.distributed.buffers import Buffer, CopyBack, contiguous, split_rows
from paceline.distributed.environment import (
    Job,
    check_machines,
    init_timeout_s,
    patience_ms,
    read_job,
)
from paceline.distributed.kinds import Kind, ReduceOp
from paceline.distributed.rendezvous import Settings, rendezvous
from paceline.errors import PeerLostError

DEFAULT_TIMEOUT = timedelta(seconds=600)


def _code(op: ReduceOp) -> ReduceOp:
    # The look-up of an enum costs more than the rest of a small call.
    return op if type(op) is ReduceOp else ReduceOp(op)


class Work:
    """A collective under way.

    The memory that was passed in must not be touched until `wait` has returned.
    """

    def __init__(
        self, native: _C.Work | None = None, keep: Buffer = None, then: Sequence[CopyBack] = ()
    ) -> None:
        self._native = native  # None: it was complete from the start
        self._keep = keep
        self._then = then

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the result is there; always True.

        Parameters
        ----------
        timeout : timedelta, optional
            Accepted as PyTorch does; the group's own timeout holds.

        Raises
        ------
        PeerLostError, RemoteError, CollectiveMismatchError, CollectiveTimeoutError
            The collective failed.
        """
        if self._native is not None:
            self._native.wait()
        steps, self._then = self._then, ()
        for step in steps:
            step()
        return True

    def is_completed(self) -> bool:
        """Whether `wait` would return at once."""
        return self._native is None or self._native.is_completed()


class _Closed:
    """Stands in for the core's group when it is gone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        raise RuntimeError(
            f"[{method}] process group {self._name!r} was destroyed: no call may follow"
        )


class ProcessGroup:
    """The ranks of a job, and what they can do together.

    Making one is itself collective: every rank of the job makes it, with the same arguments.

    Parameters
    ----------
    name : str
        Tells groups apart, also in messages.
    timeout : timedelta or float
        How long a collective may take, a timedelta or seconds.
    init_timeout : float, optional
        Seconds to wait for the other ranks; PACELINE_INIT_TIMEOUT or 300 by default.
    strict_call_sites : bool
        Whether ranks that make the same call at different lines are an error, not a warning.
    job : Job, optional
        Who this process is; read from the environment by default.
    ranks : sequence of int, optional
        The rank in the whole job of each member, where the group is a part of one.

    Raises
    ------
    RendezvousError
        The ranks did not come together.
    ConfigError
        The environment does not fit together.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        timeout: timedelta | float = DEFAULT_TIMEOUT,
        init_timeout: float | None = None,
        strict_call_sites: bool = False,
        job: Job | None = None,
        ranks: Sequence[int] | None = None,
    ) -> None:
        job = read_job() if job is None else job
        if ranks is None:
            check_machines(job)
        timeout_ms = _milliseconds(timeout)
        settings = Settings(
            control_bytes=_C.group_control_bytes,
            version=_version.__version__,
            config=f"timeout {timeout_ms} ms, strict call sites {strict_call_sites}",
            timeout_s=init_timeout_s(init_timeout),
            label=name,
        )
        links = rendezvous(job, settings)
        links.taken_by_group()
        try:
            self._native: Any = _C.group_new(
                name,
                job.rank,
                job.world,
                links.control_fd,
                links.peer_fds,
                links.pidfds,
                links.pids,
                timeout_ms,
                strict_call_sites,
                links.machine_first,
                links.link_fds,
                links.inbox_fds or [-1] * job.world,
                patience_ms(),
            )
        except PeerLostError as error:
            # There is no group to ask for details, but its text is the one verdict of all ranks.
            error.op = "init_process_group"
            error.dead_ranks = tuple(map(int, re.findall(r"rank (\d+) \(pid", str(error))))
            raise
        finally:
            links.close()
        self.name = name
        self.job_id = links.job_id
        self.rank = job.rank
        self.world_size = job.world
        self.ranks = tuple(range(job.world)) if ranks is None else tuple(ranks)
        self.machines = tuple(zip(links.machine_first, links.addresses, strict=True))
        self._job = job
        self._timeout_ms = timeout_ms
        lifecycle.watch_over(self)

    def __repr__(self) -> str:
        return f"ProcessGroup({self.name!r}, rank={self.rank}, world_size={self.world_size})"

    def size(self) -> int:
        """Return the number of ranks."""
        return self.world_size

    @property
    def native(self) -> _C.Group:
        """The core's group, for the reducer."""
        group: _C.Group = self._native
        return group

    @property
    def timeout(self) -> timedelta:
        """How long a collective may take."""
        return timedelta(milliseconds=self._timeout_ms)

    @property
    def is_closed(self) -> bool:
        """Whether the group was destroyed."""
        return isinstance(self._native, _Closed)

    def group_rank(self, op: str, rank: int) -> int:
        """Give the number in this group of a rank of the job."""
        try:
            return self.ranks.index(rank)
        except ValueError:
            raise ValueError(
                f"[{op}] rank is not in group {self.name!r}: got {rank}, expected one of "
                f"{', '.join(map(str, self.ranks))}"
            ) from None

    def part(self, members: Sequence[int]) -> Job:
        """Give this rank's place in a group of its own of `members`, ranks of this group."""
        ends = [*(first for first, _ in self.machines[1:]), self.world_size]

        def machine_of(rank: int) -> int:
            return next(m for m, end in enumerate(ends) if rank < end)

        here = [rank for rank in members if machine_of(rank) == machine_of(self.rank)]
        return replace(
            self._job,
            rank=members.index(self.rank),
            world=len(members),
            local_rank=here.index(self.rank),
            local_world=len(here),
            # The lowest member's machine is where the others meet it.
            master_addr=self.machines[machine_of(members[0])][1] or self._job.master_addr,
            # The job id makes the name of this rendezvous one that no other job can have.
            run_id=self.job_id,
        )

    # -- collectives ------------------------------------------------------------------------

    def all_reduce(
        self,
        tensor: Buffer,
        op: ReduceOp = ReduceOp.SUM,
        async_op: bool = False,
        *,
        depth: int = 0,
    ) -> Work | None:
        """Combine `tensor` over all ranks, in place; every rank gets the same bits.

        Parameters
        ----------
        tensor : Tensor or writable buffer
            Of the same dtype and size on all ranks.
        op : ReduceOp
            What to compute.
        async_op : bool
            Whether to return at once with a `Work`.

        Raises
        ------
        PeerLostError, RemoteError
            Another rank died, finished or raised.
        CollectiveMismatchError
            The ranks do not make the same call; `tensor` is unchanged.
        CollectiveTimeoutError
            Not all ranks came in time.
        """
        if not async_op:
            try:  # the usual case, without a look at the memory first
                self._native.all_reduce(tensor, _code(op), depth + 1)
                return None
            except (TypeError, ValueError):
                if contiguous("all_reduce", tensor)[1] is None:
                    raise
        return self.run(Kind.ALL_REDUCE, None, tensor, op=op, async_op=async_op, depth=depth + 1)

    def run(
        self,
        kind: Kind,
        source: Buffer | None,
        target: Buffer | None,
        *,
        op: ReduceOp = ReduceOp.SUM,
        root: int = 0,
        async_op: bool = False,
        then: CopyBack | None = None,
        depth: int = 0,
    ) -> Work | None:
        """Run one collective of the core; `root` is a rank of this group.

        Parameters
        ----------
        kind : Kind
            Which one.
        source, target : Tensor, buffer or None
            What is sent and where the result goes; collectives on one buffer have no source, and
            what only the root has is None elsewhere.
        then : callable, optional
            To be called when the result is there.
        """
        name = kind.name.lower()
        memory, _ = (None, None) if source is None else contiguous(name, source)
        result, back = (None, None) if target is None else contiguous(name, target)
        if kind == Kind.REDUCE and root != self.rank:
            back = None
        if kind == Kind.BROADCAST and root == self.rank:
            back = None
        native = self._native.collective(kind, memory, result, _code(op), root, async_op, depth + 1)
        work = Work(native, (memory, result), [step for step in (back, then) if step is not None])
        if async_op:
            return work
        work.wait()
        return None

    def reduce(
        self,
        tensor: Buffer,
        dst: int,
        op: ReduceOp = ReduceOp.SUM,
        async_op: bool = False,
        *,
        depth: int = 0,
    ) -> Work | None:
        """Combine `tensor` over all ranks; only rank `dst` of the job gets the result."""
        root = self.group_rank("reduce", dst)
        return self.run(
            Kind.REDUCE, None, tensor, op=op, root=root, async_op=async_op, depth=depth + 1
        )

    def reduce_scatter(
        self,
        output: Buffer,
        input: Buffer,
        op: ReduceOp = ReduceOp.SUM,
        async_op: bool = False,
        *,
        depth: int = 0,
    ) -> Work | None:
        """Combine `input` over all ranks; rank r gets the r-th of `world_size` equal parts."""
        return self.run(
            Kind.REDUCE_SCATTER, input, output, op=op, async_op=async_op, depth=depth + 1
        )

    def all_gather(
        self, output: Buffer, input: Buffer, async_op: bool = False, *, depth: int = 0
    ) -> Work | None:
        """Put every rank's `input` into `output`, one after another."""
        return self.run(Kind.ALL_GATHER, input, output, async_op=async_op, depth=depth + 1)

    def broadcast(
        self, tensor: Buffer, src: int, async_op: bool = False, *, depth: int = 0
    ) -> Work | None:
        """Copy `tensor` from rank `src` of the job to all ranks, in place."""
        root = self.group_rank("broadcast", src)
        return self.run(Kind.BROADCAST, None, tensor, root=root, async_op=async_op, depth=depth + 1)

    def gather(
        self,
        input: Buffer,
        output: Buffer | None,
        dst: int,
        async_op: bool = False,
        *,
        depth: int = 0,
    ) -> Work | None:
        """Put every rank's `input` into `output` of rank `dst` of the job, one after another."""
        root = self.group_rank("gather", dst)
        target = _only_on("gather", "output", output, self.rank == root)
        return self.run(Kind.GATHER, input, target, root=root, async_op=async_op, depth=depth + 1)

    def scatter(
        self,
        output: Buffer,
        input: Buffer | None,
        src: int,
        async_op: bool = False,
        *,
        depth: int = 0,
    ) -> Work | None:
        """Give rank r the r-th of `world_size` equal parts of `input` of rank `src` of the job."""
        root = self.group_rank("scatter", src)
        source = _only_on("scatter", "input", input, self.rank == root)
        return self.run(Kind.SCATTER, source, output, root=root, async_op=async_op, depth=depth + 1)

    def all_to_all(
        self,
        output: Buffer,
        input: Buffer,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        *,
        depth: int = 0,
    ) -> None:
        """Send the j-th part of `input` to rank j, which puts it at this rank's place.

        Parameters
        ----------
        output, input : Tensor or buffer
            Split along their first dimension.
        output_split_sizes, input_split_sizes : sequence of int, optional
            Rows from and to each rank; equal parts by default.

        Raises
        ------
        ValueError
            The splits do not sum to the first dimension.
        CollectiveMismatchError
            What a rank sends is not what its peer expects; `output` is unchanged.
        """
        source, _ = contiguous("all_to_all", input)
        target, back = contiguous("all_to_all", output)
        splits, row = split_rows(self.world_size, source, input_split_sizes, "input")
        expected, _ = split_rows(self.world_size, target, output_split_sizes, "output")
        self._native.all_to_all(source, target, [*splits, *expected, row], depth + 1)
        if back is not None:
            back()

    def barrier(self, *, depth: int = 0) -> None:
        """Wait until every rank is here."""
        self._native.barrier(depth + 1)

    def send(self, tensor: Buffer, dst: int, tag: int = 0, *, depth: int = 0) -> None:
        """Send to rank `dst` of the job, which calls `recv`."""
        memory, _ = contiguous("send", tensor)
        self._native.send(memory, self.group_rank("send", dst), tag, depth + 1)

    def recv(self, tensor: Buffer, src: int, tag: int = 0, *, depth: int = 0) -> None:
        """Receive what rank `src` of the job sends, of the same dtype and size."""
        memory, back = contiguous("recv", tensor)
        self._native.recv(memory, self.group_rank("recv", src), tag, depth + 1)
        if back is not None:
            back()

    # -- collectives of Python objects ------------------------------------------------------

    def all_gather_object(self, obj: Any, *, depth: int = 0) -> list[Any]:
        """Give every rank the list of all ranks' objects, by rank.

        The objects are pickled: the ranks are processes of one user on one machine, which the
        rendezvous has checked.

        Raises
        ------
        RemoteError
            Another rank's object cannot be pickled; that rank gets pickle's own exception.
        """
        return objects.all_gather(self, obj, depth + 1)

    def gather_object(self, obj: Any, dst: int = 0, *, depth: int = 0) -> list[Any] | None:
        """As `all_gather_object`, but only rank `dst` of the job gets the list, others None."""
        return objects.gather(self, obj, self.group_rank("gather_object", dst), depth + 1)

    def broadcast_object_list(
        self, object_list: list[Any], src: int = 0, *, depth: int = 0
    ) -> None:
        """Replace the items of `object_list` by those of rank `src` of the job; pickled."""
        root = self.group_rank("broadcast_object_list", src)
        objects.broadcast_list(self, object_list, root, depth + 1)

    def scatter_object_list(
        self, object_list: list[Any] | None, src: int = 0, *, depth: int = 0
    ) -> Any:
        """Give rank r the r-th object of `object_list` of rank `src` of the job; pickled."""
        root = self.group_rank("scatter_object_list", src)
        return objects.scatter_list(self, object_list, root, depth + 1)

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the group: peers that still wait for this rank get an error at once."""
        lifecycle.close(self)

    def check(self) -> None:
        """Raise the group's failure, if it has one."""
        self._native.check()

    def detach(self) -> Any:
        """Give the core's group away for closing; later calls raise."""
        native, self._native = self._native, _Closed(self.name)
        return native


def _only_on(op: str, name: str, buffer: Buffer | None, is_root: bool) -> Buffer | None:
    if is_root and buffer is None:
        raise ValueError(f"[{op}] {name} is needed on the root: got None")
    return buffer if is_root else None


def _milliseconds(timeout: timedelta | float) -> int:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"[init_process_group] timeout must be above 0: got {timeout}")
    return max(1, round(seconds * 1000))
