# SPDX-License-Identifier: Apache-2.0
"""Scripts written for Accelerate that cannot be edited: ``import accelerate`` gives paceline.

Only for the program's own code, and for the libraries that it names, such as transformers, whose
``Trainer`` makes an Accelerator. Other installed libraries keep the Accelerate they were written
for, if there is one, so that both stand side by side in one process.
``python -m paceline.compat script.py`` runs a script so, transformers included.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distributed import ProcessGroup

__all__ = ["install", "run", "uninstall"]

_NAME = "accelerate"
_HERE = "paceline"
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
# Guards the two names below; held for no import.
_lock = threading.Lock()
_before: Any = None  # what __import__ was
_also: frozenset[str] = frozenset()


def install(libraries: Sequence[str] = ()) -> None:
    """Make ``import accelerate`` and ``from accelerate... import ...`` give paceline from now on.

    Call it before the imports that it is to change. A second call adds libraries.

    Parameters
    ----------
    libraries : sequence of str
        Top-level names of installed packages whose imports are to change, too. They get a
        stand-in for each name that is not here, which says so when it is used; and where
        ``torch.distributed`` has no default group, it is given the Accelerator's.

    Examples
    --------
    >>> from paceline.compat import install, uninstall
    >>> install()
    >>> import accelerate
    >>> accelerate.__name__
    'paceline'
    >>> uninstall()
    """
    global _before, _also
    from .state import PartialState

    with _lock:
        _also |= frozenset(libraries)
        if libraries and _lend_to_torch not in PartialState._uses:
            PartialState._uses.append(_lend_to_torch)
        if _before is None:
            _before = builtins.__import__
            builtins.__import__ = _import


def _lend_to_torch(group: ProcessGroup) -> None:
    """Let libraries use ``torch.distributed``, which Accelerate would have initialised."""
    from .engines import loaded_engines

    for engine in loaded_engines():
        engine.lend(group)


def uninstall() -> None:
    """Undo ``install``; what was imported stays as it is."""
    global _before, _also
    from .state import PartialState

    with _lock:
        if _lend_to_torch in PartialState._uses:
            PartialState._uses.remove(_lend_to_torch)
        if _before is not None and builtins.__import__ is _import:
            builtins.__import__ = _before
            _before = None
        _also = frozenset()


def run(arguments: Sequence[str]) -> None:
    """Run a script, or a module after ``-m``, with ``install`` in force; for transformers, too.

    Parameters
    ----------
    arguments : sequence of str
        The script's path, or ``-m`` and a module, and then its own arguments.

    Raises
    ------
    ValueError
        When no script is named.
    """
    import runpy

    given = list(arguments)
    as_module = given[:1] == ["-m"]
    if as_module:
        del given[0]
    if not given:
        raise ValueError("[compat] no script: expected `python -m paceline.compat script.py ...`")
    install(["transformers"])  # for its Trainer, which makes an Accelerator of its own
    sys.argv[:] = given
    if as_module:
        runpy.run_module(given[0], run_name="__main__", alter_sys=True)
        return
    # As Python does for a script; and so for the modules beside it.
    sys.path[0] = os.path.dirname(os.path.abspath(given[0]))
    runpy.run_path(given[0], run_name="__main__")


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    top, dot, rest = name.partition(".")
    importer = globals or {}
    if top != _NAME or level or not _concerns(importer):
        return (_before or _plain)(name, globals, locals, fromlist, level)
    from importlib import import_module

    if _package(importer) in _also:
        return _for_library(rest, bool(fromlist))
    wanted = f"{_HERE}{dot}{rest}"
    try:
        module = import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name is None or not wanted.startswith(error.name):
            raise  # something that paceline itself needs is not installed
        raise ImportError(_explain(name, rest), name=name) from None
    return module if fromlist else import_module(_HERE)


_plain = builtins.__import__


def _for_library(rest: str, last: bool) -> Any:
    """Give a module as a library sees it: names that are not here fail when they are used."""
    whole = module = _seen(_NAME)
    above = _NAME
    for part in rest.split(".") if rest else ():
        above = f"{above}.{part}"
        inner = _seen(above)
        setattr(module, part, inner)
        module = inner
    return module if last else whole


@cache
def _seen(name: str) -> Any:
    from importlib import import_module

    from .stand_ins import StandIns

    # Where a name stands in another module here, these have it.
    places = [import_module(f"{_HERE}.utils"), import_module(_HERE)]
    try:
        places.insert(0, import_module(name.replace(_NAME, _HERE, 1)))
    except ModuleNotFoundError:
        pass
    return StandIns(name, places, lambda part: _explain(f"{name}.{part}", part))


def _package(importer: Mapping[str, object]) -> str:
    return str(importer.get("__name__", "")).partition(".")[0]


def _concerns(importer: Mapping[str, object]) -> bool:
    """Whether an import is of the program's own code."""
    package = _package(importer)
    if package in _also:
        return True
    file = str(importer.get("__file__") or "")
    return package not in (_NAME, _HERE) and not any(part in file for part in _LIBRARIES)


def _explain(name: str, rest: str) -> str:
    from .absent import NAMES, explain

    part = rest.rpartition(".")[2]
    if part in NAMES:
        return explain(_HERE, part, NAMES[part])
    return (
        f"[compat] paceline has no counterpart to {name}: docs/from_accelerate.md lists what is "
        "here; take the import out, or run the script with Accelerate"
    )


if __name__ == "__main__":
    # This file is __main__ here; the module that scripts may import is another object.
    from paceline import compat

    compat.run(sys.argv[1:])
