# SPDX-License-Identifier: Apache-2.0
"""Print the folder that holds oneDNN's C header, or fail: called by cmake/onednn.cmake.

Looks where the wheel's own record says (right also in pip's isolated build environments), then in
this interpreter's prefix, then in the system's include folder.
"""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = Path("oneapi/dnnl/dnnl.h")


def candidates() -> Iterator[Path]:
    """Yield folders that may hold the header, best first."""
    for name in ("onednn-devel-cpu-gomp", "onednn-devel"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.parts[-3:] == HEADER.parts:
                yield Path(str(file.locate())).resolve().parents[2]
    yield Path(sys.prefix) / "include"
    yield Path("/usr/include")


for folder in candidates():
    if (folder / HEADER).exists():
        print(folder)
        sys.exit(0)
sys.exit(1)
