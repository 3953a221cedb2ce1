# SPDX-License-Identifier: Apache-2.0
"""One rank of ``notebook_launcher``: loads the function from a descriptor and runs it.

Run by its path in a fresh interpreter, so it imports only the standard library until the parent's
``sys.path`` is in place. Arguments: descriptor of the payload, descriptor for the result, process
id of the parent, processors to keep to (``0,1``, may be empty), and whether to send the value that
the function returned (``answer``).

A result begins with one letter: V the pickled value; U why the value cannot be sent; E a pickled
(exception or None, class name, message, traceback); X a pickled exit code.
"""

from __future__ import annotations

import json
import linecache
import mmap
import os
import pickle
import signal
import sys
import traceback
import types
from typing import Any

_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """Have the kernel end this process when the parent dies, at once if it has."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _load(fd: int) -> tuple[Any, Any]:
    """Put the parent's import path in place, then load function and arguments."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        size = int.from_bytes(view[:8], "little")
        header = json.loads(bytes(view[8 : 8 + size]))
        sys.path[:] = header["sys_path"]
        for name, lines in header["sources"].items():  # cells, for tracebacks and inspect
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        with view[8 + size :] as pickled:
            function, args = pickle.loads(pickled)
    return function, args


def _become_main(function: Any) -> None:
    """Offer what came along from ``__main__`` under that name, so that it can be pickled again."""
    main = types.ModuleType("__main__")
    names = getattr(getattr(function, "__func__", function), "__globals__", {})
    if names.get("__name__") == "__main__":
        main.__dict__.update(names)
        main.__dict__.pop("__file__", None)  # nobody is to import it again
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    # Classes that came with the arguments, or that only other classes use.
    for cls in list(getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {}).values()):
        if cls.__module__ == "__main__" and "." not in cls.__qualname__:
            main.__dict__.setdefault(cls.__qualname__, cls)
    sys.modules["__main__"] = main


def _write(fd: int, letter: bytes, data: bytes) -> None:
    view = memoryview(letter + data)
    while view:
        view = view[os.write(fd, view) :]


def _send_value(fd: int, value: Any) -> None:
    import cloudpickle

    try:
        data = cloudpickle.dumps(value)
    except Exception as error:
        _write(fd, b"U", f"{type(value).__name__}: {error}".encode())
    else:
        _write(fd, b"V", data)


def _send_error(fd: int, error: BaseException) -> None:
    import cloudpickle

    inner = error.__traceback__.tb_next if error.__traceback__ else None
    text = "".join(traceback.format_exception(type(error), error, inner))
    told = type(error).__qualname__, str(error), text
    try:
        data = cloudpickle.dumps((error, *told))
        pickle.loads(data)  # exceptions with arguments of their own often cannot be made again
    except Exception:
        data = pickle.dumps((None, *told))
    _write(fd, b"E", data)


def _run(function: Any, args: Any, result_fd: int, answer: bool) -> None:
    try:
        value = function(*args)
    except SystemExit as error:
        _write(result_fd, b"X", pickle.dumps(error.code if isinstance(error.code, int) else None))
        raise
    except Exception as error:
        _send_error(result_fd, error)
        raise
    if answer:
        _send_value(result_fd, value)


def main() -> None:
    """Run this rank."""
    payload_fd, result_fd, parent = (int(word) for word in sys.argv[1:4])
    _end_with(parent)
    if sys.argv[4]:
        os.sched_setaffinity(0, [int(cpu) for cpu in sys.argv[4].split(",")])
    answer = sys.argv[5] == "answer"
    del sys.argv[1:]
    try:
        function, args = _load(payload_fd)
    except Exception as error:
        error.add_note("raised while a process loaded the function and its arguments")
        _send_error(result_fd, error)
        raise
    os.close(payload_fd)
    _become_main(function)
    _run(function, args, result_fd, answer)


if __name__ == "__main__":
    main()
