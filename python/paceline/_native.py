# SPDX-License-Identifier: Apache-2.0
"""Finding the library for matrix products, once, at the first operation that needs it.

Order: ``PACELINE_DNNL``, the PyPI wheel, the name under which a distribution installs it.
"""

from __future__ import annotations

import os

from paceline import _C

_WHEEL = "onednn-cpu-gomp"
_SONAME = "libdnnl.so.3"


def find_dnnl() -> str:
    """Path or name of oneDNN's shared library.

    Raises
    ------
    FileNotFoundError
        If ``PACELINE_DNNL`` names a file that does not exist.
    """
    named = os.environ.get("PACELINE_DNNL")
    if named:
        if not os.path.exists(named) and os.sep in named:
            raise FileNotFoundError(
                f"[oneDNN] PACELINE_DNNL names no file: got {named!r}, "
                f"expected the path of {_SONAME}"
            )
        return named
    return _wheel_path() or _SONAME


def _wheel_path() -> str | None:
    # The wheel puts its library beside the interpreter's own; only its record knows where.
    import importlib.metadata

    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _SONAME:
            path = os.path.realpath(str(file.locate()))
            if os.path.exists(path):
                return path
    return None


def load() -> None:
    """Tell the core where oneDNN is; the core opens it."""
    _C.set_dnnl_path(find_dnnl())


def install() -> None:
    """Have `load` called before the first operation."""
    _C.set_native_loader(load)
