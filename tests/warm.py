# SPDX-License-Identifier: Apache-2.0
"""Ranks that begin with PyTorch loaded: forked from one process that has done nothing but import.

A fresh interpreter needs seconds of a core to load PyTorch and its compiler, which its optimizers
ask for; a fork of one that has them needs none. The process that is forked has one thread, has not
imported paceline and has computed nothing, so that a rank finds what a fresh one would.

The test's side is ``start``; run as a script, this file is the other side. It reads requests, a
line of JSON each, and answers ``[pid, null]`` when a rank has begun and ``[pid, code]`` when it has
ended. A rank leaves that loop with the script to run, so that the interpreter ends it as any other:
excepthook, atexit, exit code.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, Any


class Forked:
    """A rank, in the terms of ``subprocess.Popen``."""

    def __init__(self, server: _Server, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        self._server.read(wait=False)
        return self._server.codes[self.pid]

    def wait(self) -> int:
        """Wait until it has ended."""
        while (code := self._server.codes[self.pid]) is None:
            self._server.read(wait=True)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class _Server:
    def __init__(self, env: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in env.items() if name != "PACELINE_TEST_TAG"},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        self._rest = b""
        self.codes: dict[int, int | None] = {}
        self._begun: list[int] = []
        atexit.register(self._end)

    def start(self, request: dict[str, Any]) -> Forked:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while not self._begun:
            self.read(wait=True)
        return Forked(self, self._begun.pop())

    def read(self, wait: bool) -> None:
        """Take in what the process has answered."""
        while select.select([self._socket], [], [], 60 if wait else 0)[0]:
            data = self._socket.recv(65536)
            assert data, "the process from which ranks are forked has ended"
            *lines, self._rest = (self._rest + data).split(b"\n")
            for pid, code in map(json.loads, lines):
                self.codes[pid] = code
                if code is None:
                    self._begun.append(pid)
            wait = False

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


_servers: dict[str, _Server] = {}  # by the path that modules are found on


def start(script: Path, env: dict[str, str], out: IO[bytes], err: IO[bytes]) -> Forked:
    """Begin a rank that runs a script.

    Parameters
    ----------
    script : path
        What it runs.
    env : dict
        Its whole environment. What an interpreter reads when it begins (``PYTHON...``) and
        ``OMP_NUM_THREADS`` are those of the process that is forked: the first ones asked for.
    out, err : file
        Where its output goes.
    """
    path = env["PYTHONPATH"]
    if path not in _servers:
        _servers[path] = _Server(env)
    names = {"script": str(script), "out": out.name, "err": err.name, "env": env}
    return _servers[path].start(names)


# --- the process that is forked ---------------------------------------------------------------


def _serve(requests: socket.socket) -> Path:
    """Fork a rank for each request; comes back in a rank, with its script."""
    rest, ranks = b"", {}
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd in ranks:
                pid = ranks.pop(fd)
                poller.unregister(fd)
                os.close(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                requests.sendall(b"%s\n" % json.dumps([pid, code]).encode())
                continue
            data = requests.recv(65536)
            if not data:
                os._exit(0)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    for inherited in ranks:
                        os.close(inherited)
                    return _become(json.loads(line))
                watch = os.pidfd_open(pid)
                ranks[watch] = pid
                poller.register(watch, select.POLLIN)
                requests.sendall(b"%s\n" % json.dumps([pid, None]).encode())


def _become(request: dict[str, Any]) -> Path:
    os.setsid()
    for name, fd in (("out", 1), ("err", 2)):
        file = os.open(request[name], os.O_WRONLY | os.O_APPEND)
        os.dup2(file, fd)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    if "numpy" in sys.modules:  # Python's own generator does so by itself
        sys.modules["numpy"].random.seed()
    return Path(request["script"])


def _load() -> None:
    import torch
    import torch._dynamo
    import torch.optim
    import torch.utils.data  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
    gc.freeze()  # else each rank walks through all of PyTorch's objects at its end


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _load()
    _script = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [str(_script)]
    sys.path[0] = str(_script.parent)
    _main = ModuleType("__main__")
    _main.__file__ = str(_script)
    sys.modules["__main__"] = _main
    exec(compile(_script.read_text(), _script, "exec"), _main.__dict__)
