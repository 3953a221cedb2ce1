# SPDX-License-Identifier: Apache-2.0
"""The ranks of a process group, joined once more by ``torch.distributed``, for tensors on GPUs.

The core moves what lies in CPU memory. What lies elsewhere goes through a backend of PyTorch's own
(NCCL for CUDA), made at the first need and beside whatever ``torch.distributed`` groups the script
has: it is no default group. Before each collective the ranks tell one another over the core what
they are about to do, so that a call that does not match, a rank that died or raised, is told as it
is for CPU tensors. Knows nothing of models.

Note [meeting without a name]: the ranks of torch's backends meet in a ``FileStore``. Its file is
rank 0's memfd, which the others open through /proc: only processes of the same user can, it has no
name that could be left behind, and nobody listens on a port for it.

Threads: one caller at a time; a thread of its own watches for lost ranks while a device computes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
import zlib
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..._call_site import frames_of_ours
from ...environment import read_environment
from ...errors import CollectiveMismatchError

if TYPE_CHECKING:
    from ...distributed import ProcessGroup

__all__ = ["BACKENDS", "DeviceGroup", "device_group", "goes_by_torch"]

#: Which backend of torch's serves which kind of device.
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_OPS = {"sum": "SUM", "mean": "SUM", "max": "MAX", "min": "MIN"}
_LOOK_S = 0.05  # how often a wait looks whether a rank was lost
_made: weakref.WeakKeyDictionary[ProcessGroup, dict[str, DeviceGroup]] = weakref.WeakKeyDictionary()


def goes_by_torch(device: torch.device) -> bool:
    """Tell whether tensors on a device go through ``torch.distributed`` and not the core."""
    return device.type != "cpu" or _all_do()


@cache
def _all_do() -> bool:
    return read_environment().torch_distributed


def device_group(group: ProcessGroup, device: torch.device) -> DeviceGroup:
    """Give the backend for a kind of device; the first call for it is collective.

    Raises
    ------
    NotImplementedError
        On all ranks, where PyTorch has none, or the ranks are on several machines.
    """
    of_group = _made.setdefault(group, {})
    found = of_group.get(device.type)
    if found is None:
        found = of_group[device.type] = DeviceGroup(group, device)
    return found


class DeviceGroup:
    """Collectives among the ranks of a process group on tensors of one kind of device.

    Parameters
    ----------
    group : ProcessGroup
        Whose ranks; it is not kept alive.
    device : torch.device
        Where this rank's tensors are.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.kind = device.type
        self.reducers = itertools.count()  # numbers them, alike on all ranks
        self._failed = False
        self.trail = 0  # checksum of the reductions begun without telling, in their order
        self._owner = weakref.ref(group)
        self._store = _meeting_place(group, device.type)
        weakref.finalize(self, os.close, self._store)
        self._backend: Any = _join(group, device, f"/proc/self/fd/{self._store}")
        if self.kind != "cpu":
            _watch(self)
        atexit.register(_close, weakref.ref(self))

    @property
    def group(self) -> ProcessGroup:
        """The process group of the core."""
        group = self._owner()
        if group is None or group.is_closed:
            raise RuntimeError("[torch.distributed] the process group was destroyed")
        return group

    # --- collectives ----------------------------------------------------------------------------

    def all_reduce(self, tensor: torch.Tensor, op: str) -> None:
        """Reduce a dense tensor in place."""
        self._announce("reduce", tensor, op)
        floating = tensor.is_floating_point() or tensor.is_complex()
        if op == "mean" and not floating:
            raise TypeError(
                f"[all_reduce] mean needs a floating dtype: got {str(tensor.dtype)[6:]}, expected "
                "float or sum"
            )
        self.wait(self._begin_all_reduce(tensor, op))
        if op == "mean":
            tensor.div_(self.group.world_size)

    def start_sum(self, tensor: torch.Tensor, label: str) -> Any:
        """Begin a sum without telling the other ranks; give what ``wait`` takes.

        Torch matches such calls by their order alone: ``trail`` must be compared before the
        result is used.
        """
        self.trail = zlib.crc32(f"{label} {tensor.numel()}".encode(), self.trail)
        return self._begin_all_reduce(tensor, "sum")

    def _begin_all_reduce(self, tensor: torch.Tensor, op: str) -> Any:
        options = dist.AllreduceOptions()
        options.reduceOp = getattr(dist.ReduceOp, _OPS[op])
        return self._backend.allreduce([tensor], options)

    def all_gather(self, out: torch.Tensor, own: torch.Tensor) -> None:
        """Put every rank's dense tensor into ``out``, one after another along dimension 0."""
        self._announce("gather", own, "")
        if own.numel() == 0:
            return
        to = _bytes(out).chunk(self.group.world_size)
        self.wait(self._backend.allgather([list(to)], [_bytes(own)]))

    def broadcast(self, tensor: torch.Tensor, root: int) -> None:
        """Overwrite a dense tensor with rank root's."""
        self._announce("broadcast", tensor, f"from rank {root}")
        if tensor.numel() == 0:
            return
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = root, 0
        self.wait(self._backend.broadcast([_bytes(tensor)], options))

    def _announce(self, name: str, tensor: torch.Tensor, how: str) -> None:
        mine = (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), how)
        calls = self.group.all_gather_object(mine, depth=frames_of_ours())
        if any(call != mine for call in calls):
            table = "".join(
                f"\n  rank {rank}: {op}, {list(shape)} {dtype} {how}".rstrip()
                for rank, (op, shape, dtype, how) in enumerate(calls)
            )
            raise CollectiveMismatchError(
                f"[{name}] the ranks make different calls on {self.kind} tensors:{table}\n"
                "every rank must make the same calls in the same order"
            )

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, work: Any) -> None:
        """Wait for a collective; on a GPU only the current stream waits.

        Raises
        ------
        PeerLostError, RemoteError
            When a rank was lost meanwhile.
        """
        try:
            if self.kind == "cpu":
                _poll(work, self.group)
            work.wait()
        except RuntimeError as error:
            self._say_who(error)
            raise

    def _say_who(self, error: RuntimeError) -> None:
        """Raise what the core knows of a failure that torch saw; it names the rank and the why."""
        group = self.group
        group.check()
        try:
            group.barrier(depth=frames_of_ours())
        except Exception as verdict:
            raise verdict from error

    def abort(self) -> None:
        """End what is under way, also on the device; no collective may follow."""
        self._failed = True
        end = getattr(self._backend, "abort", None) or getattr(self._backend, "_abort", None)
        if end is not None:
            end()

    def close(self) -> None:
        """Let the backend end its threads; after a failure they may wait for ever, and are left."""
        if not self._failed:
            self._backend = None


def _bytes(dense: torch.Tensor) -> torch.Tensor:
    return dense.reshape(-1).view(torch.uint8)


# --- forming a group --------------------------------------------------------------------------


def _meeting_place(group: ProcessGroup, kind: str) -> int:
    """Give a descriptor of the file in which the ranks meet; see Note [meeting without a name]."""
    own = os.memfd_create("paceline-torch") if group.rank == 0 else -1
    mine = (_obstacle(group, kind), f"/proc/{os.getpid()}/fd/{own}")
    said = group.all_gather_object(mine, depth=frames_of_ours())
    obstacles = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(said) if text]
    if obstacles:
        if own >= 0:
            os.close(own)
        raise NotImplementedError(
            f"[torch.distributed] tensors on {kind!r} cannot go between the ranks: "
            + "; ".join(obstacles)
            + "; use Accelerator(cpu=True)"
        )
    return own if own >= 0 else os.open(said[0][1], os.O_RDWR | os.O_CLOEXEC)


def _obstacle(group: ProcessGroup, kind: str) -> str:
    backend = BACKENDS.get(kind)
    if backend is None:
        return f"no backend is known, got {kind!r}, expected one of {', '.join(BACKENDS)}"
    if not dist.is_available() or not getattr(dist, f"is_{backend}_available")():
        return f"this PyTorch was built without {backend}"
    if len(group.machines) > 1:
        return f"the ranks are on {len(group.machines)} machines, expected 1"
    return ""


def _join(group: ProcessGroup, device: torch.device, path: str) -> Any:
    """Make the backend, in a thread of its own: a rank that never comes must not hold this one."""
    made: list[Any] = []
    timeout, rank, world = group.timeout, group.rank, group.world_size

    def join() -> None:
        try:
            store = dist.FileStore(path, world)
            store.set_timeout(timeout)
            make = _gloo if device.type == "cpu" else _nccl
            made.append(make(store, rank, world, timeout, device))
        except Exception as error:
            made.append(error)

    thread = threading.Thread(target=join, name="paceline-torch-group", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        group.check()
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


def _gloo(store: Any, rank: int, world: int, timeout: timedelta, device: torch.device) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    # Not the host's name, which may resolve to an address that other machines reach.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return dist.ProcessGroupGloo(store, rank, world, options)


def _nccl(store: Any, rank: int, world: int, timeout: timedelta, device: torch.device) -> Any:
    torch.cuda.set_device(device)  # a thread begins on device 0
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    made = dist.ProcessGroupNCCL(store, rank, world, options)
    # The first collective makes the communicator, and meets the others for that.
    made.allreduce([torch.zeros(1, device=device)]).wait()
    torch.cuda.synchronize(device)
    return made


def _close(link: weakref.ref[DeviceGroup]) -> None:
    """At the end of the process: threads of torch's that outlive Python can end it by SIGABRT."""
    found = link()
    if found is not None:
        found.close()


# --- faults -------------------------------------------------------------------------------------


def _poll(work: Any, group: ProcessGroup) -> None:
    """Wait for a collective of CPU tensors, and raise when a rank is lost."""
    pause, since = threading.Event(), 0.0
    step = 20e-6
    while not work.is_completed():
        pause.wait(step)
        since += step
        step = min(2 * step, 1e-3)
        if since > _LOOK_S:
            group.check()
            since = 0.0


def _watch(link: DeviceGroup) -> None:
    """End what a device is doing when a rank is lost: it would wait for that one in vain.

    What the device had computed is then worthless; the next collective says which rank it was.
    """
    owner, backend = link._owner, weakref.ref(link)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(2 * _LOOK_S):
            group = owner()
            if group is None or group.is_closed:
                return
            try:
                group.check()
            except Exception:
                ended: Callable[[], None] | None = getattr(backend(), "abort", None)
                if ended is not None:
                    ended()
                return

    atexit.register(stop.set)
    threading.Thread(target=look, name="paceline-torch-watch", daemon=True).start()
