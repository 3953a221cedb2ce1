# SPDX-License-Identifier: Apache-2.0
"""Print where oneDNN's C header (argument `header`) or library (`library`) is, or fail.

Called by cmake/onednn.cmake and tests/c/test_units.py. Looks where the wheel's own record says
(right also in pip's isolated build environments), then in this interpreter's prefix, then in the
system's folders. For the header the folder to give to the compiler is printed.
"""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = ("oneapi", "dnnl", "dnnl.h")
LIBRARY = ("libdnnl.so.3",)


def places(tail: tuple[str, ...], folder: str) -> Iterator[Path]:
    """Yield where the file that ends in `tail` may be, best first."""
    for name in ("onednn-devel-cpu-gomp", "onednn-cpu-gomp"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.parts[-len(tail) :] == tail:
                yield Path(str(file.locate())).resolve()
    yield Path(sys.prefix, folder, *tail)
    yield Path("/usr", folder, *tail)


header = sys.argv[1] == "header"
for path in places(HEADER, "include") if header else places(LIBRARY, "lib"):
    if path.exists():
        print(path.parents[2] if header else path)
        sys.exit(0)
sys.exit(1)
