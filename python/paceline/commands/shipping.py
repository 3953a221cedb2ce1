# SPDX-License-Identifier: Apache-2.0
"""Packs a function for a fresh interpreter, and names what cannot be packed.

What is defined in ``__main__`` goes by value, so that no process imports it again; everything
else goes by name. Knows nothing of processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["pack"]

_DEPTH_MAX = 12

# What knows which rank it is in. A copy of it in another process would be wrong without a word:
# an Accelerator of the notebook is the only process of its world.
_PROCESS_BOUND = frozenset(
    (
        "paceline.accelerator.Accelerator",
        "paceline.data_loader.DataLoaderShard",
        "paceline.distributed.process_group.ProcessGroup",
        "paceline.optimizer.AcceleratedOptimizer",
        "paceline.scheduler.AcceleratedScheduler",
        "paceline.state.AcceleratorState",
        "paceline.state.GradientState",
        "paceline.state.PartialState",
    )
)


def _is_bound(value: Any) -> bool:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}" in _PROCESS_BOUND


def _dumps(value: Any) -> bytes:
    """Pickle by value, but nothing that belongs to this process."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if _is_bound(obj):
                raise TypeError("it belongs to the process that made it")
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def pack(
    function: Any,
    args: tuple[Any, ...],
    by_value: bool = False,
    caller: str = "notebook_launcher",
) -> bytes:
    """Pack a function, its arguments and what they need.

    Parameters
    ----------
    function : callable
        What each rank calls.
    args : tuple
        With what.
    by_value : bool
        Send the function's module by value although it could be imported.
    caller : str
        Who is to stand in front of an error.

    Returns
    -------
    bytes
        For ``notebook_rank``: size of the header, header, pickled (function, args).

    Raises
    ------
    TypeError
        Something that the function uses cannot be sent; the text names it.
    """
    with _module_by_value(function, by_value):
        try:
            pickled = _dumps((function, args))
        except Exception as error:
            raise TypeError(f"[{caller}] {_explain(function, args, error)}") from None
    header = json.dumps({"sys_path": list(sys.path), "sources": _sources()}).encode()
    return len(header).to_bytes(8, "little") + header + pickled


def _sources() -> dict[str, list[str]]:
    """Collect the text of cells: code that stands in no file."""
    return {
        name: list(entry[2])
        for name, entry in list(linecache.cache.items())
        if len(entry) == 4 and not os.path.exists(name)
    }


@contextlib.contextmanager
def _module_by_value(function: Any, asked: bool) -> Iterator[None]:
    """Send a module by value if asked, or if it is being imported: a rank would launch again."""
    import cloudpickle

    module = sys.modules.get(getattr(function, "__module__", "") or "")
    half = getattr(getattr(module, "__spec__", None), "_initializing", False)
    if module is None or not (half or (asked and module.__name__ != "__main__")):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# --- naming the culprit ---------------------------------------------------------------------------


def _explain(function: Any, args: tuple[Any, ...], error: Exception) -> str:
    name = getattr(function, "__qualname__", repr(function))
    trail = _trail(function, [f"{name}()"], set())
    if trail is None:
        for at, value in enumerate(args):
            trail = _trail(value, [f"args[{at}]"], set())
            if trail is not None:
                break
    if trail is None:
        return f"{name}() cannot be sent to another process: {error}"
    words, culprit, reason = trail
    path = " -> ".join(words)
    kind = type(culprit)
    return (
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which cannot be "
        f"sent to another process ({reason}): create it inside {name}(), or do not use it there"
    )


def _trail(value: Any, words: list[str], seen: set[int]) -> tuple[list[str], Any, str] | None:
    """Follow what cannot be pickled down to its innermost part; None if `value` can be."""
    if id(value) in seen or len(words) > _DEPTH_MAX:
        return None
    seen.add(id(value))
    try:
        _dumps(value)
    except Exception as error:
        for word, part in _parts(value):
            inner = _trail(part, [*words, word], seen)
            if inner is not None:
                return inner
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return words, value, reason
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """List what `value` refers to, with a word for each."""
    if _is_bound(value):
        return
    if isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from ((f".{name}", part) for name, part in vars(value).items())
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
    else:
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name!r}", function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            yield f"variable {name!r}", cell.cell_contents
    for value in (function.__defaults__ or ()) + tuple((function.__kwdefaults__ or {}).values()):
        yield "default value", value


def _global_names(code: types.CodeType) -> set[str]:
    import dis

    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
