# SPDX-License-Identifier: Apache-2.0
"""Scripts written for Accelerate that cannot be edited: ``import accelerate`` gives paceline.

Only for the program's own code. Installed libraries (transformers and the like) keep the
Accelerate they were written for, if there is one, so that both stand side by side in one process.
``python -m paceline.compat script.py`` runs a script so.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

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
        Top-level names of installed packages whose imports are to change, too.

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
    with _lock:
        _also |= frozenset(libraries)
        if _before is None:
            _before = builtins.__import__
            builtins.__import__ = _import


def uninstall() -> None:
    """Undo ``install``; what was imported stays as it is."""
    global _before, _also
    with _lock:
        if _before is not None and builtins.__import__ is _import:
            builtins.__import__ = _before
            _before = None
        _also = frozenset()


def run(arguments: Sequence[str]) -> None:
    """Run a script, or a module after ``-m``, with ``install`` in force.

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
    install()
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
    if top != _NAME or level or not _concerns(globals or {}):
        return (_before or _plain)(name, globals, locals, fromlist, level)
    from importlib import import_module

    wanted = f"{_HERE}{dot}{rest}"
    try:
        module = import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name is None or not wanted.startswith(error.name):
            raise  # something that paceline itself needs is not installed
        raise ImportError(_explain(name, rest), name=name) from None
    return module if fromlist else import_module(_HERE)


_plain = builtins.__import__


def _concerns(importer: Mapping[str, object]) -> bool:
    """Whether an import is of the program's own code."""
    package = str(importer.get("__name__", "")).partition(".")[0]
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
