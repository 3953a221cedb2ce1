# SPDX-License-Identifier: Apache-2.0
"""All-reduce by an MPI through mpi4py: ``go BYTES REPEATS`` gives the slowest rank's seconds.

Started as one process, in the interpreter that has mpi4py: it starts its ranks with the ``mpiexec``
beside that interpreter, and passes on what is asked. Needs NumPy there, and nothing of paceline.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import answer

# What the library calls itself, and what its launcher needs here.
LIBRARIES = {
    "openmpi": ("Open MPI", ["--allow-run-as-root", "--oversubscribe"]),
    "mpich": ("MPICH", []),
    "impi": ("Intel", []),
}


def launch(library: str, world: str) -> int:
    """Start the ranks, which share this process's stdin and stdout."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    ranks = [sys.executable, "-m", "benchmarks.mpi_worker", library, world, str(os.getpid())]
    return subprocess.call([str(mpiexec), *LIBRARIES[library][1], "-n", world, *ranks])


def end_with(pid: int) -> None:
    """End this rank when the process that started all of them is gone, on a thread of its own."""

    def watch() -> None:
        while True:
            time.sleep(1.0)
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def all_reduce(comm: Any, mpi: Any, nbytes: int, repeats: int) -> float:
    """Seconds of a call of the slowest rank, in place."""
    import numpy as np

    buffer = np.ones(max(nbytes // 4, 1), dtype=np.float32)
    answer.settle(
        lambda: comm.Allreduce(mpi.IN_PLACE, buffer),
        lambda seconds: comm.allreduce(seconds, op=mpi.MAX),
    )
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        comm.Allreduce(mpi.IN_PLACE, buffer)
    seconds = (time.perf_counter() - start) / repeats
    return float(comm.allreduce(seconds, op=mpi.MAX))


def rank(library: str) -> None:
    """One rank: rank 0 is asked, and tells the others."""
    from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]

    comm = MPI.COMM_WORLD
    if LIBRARIES[library][0] not in MPI.Get_library_version():
        raise RuntimeError(f"[benchmarks] {library}: got {MPI.Get_library_version()}")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= comm.size:
        os.sched_setaffinity(0, {cores[comm.rank]})

    def go(nbytes: str, repeats: str) -> float:
        size = (int(nbytes), int(repeats))
        tell(size)
        return all_reduce(comm, MPI, *size)

    def tell(what: tuple[int, int] | None) -> None:
        for other in range(1, comm.size):
            comm.send(what, other)

    def told() -> tuple[int, int] | None:
        while not comm.Iprobe(source=0):  # a wait inside MPI would spin, in the turns of others
            time.sleep(0.002)
        what: tuple[int, int] | None = comm.recv(source=0)
        return what

    if comm.rank == 0:
        answer.serve({"go": go})
        tell(None)
    else:
        while (size := told()) is not None:
            all_reduce(comm, MPI, *size)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        end_with(int(sys.argv[3]))
        rank(sys.argv[1])
    else:
        sys.exit(launch(sys.argv[1], sys.argv[2]))
