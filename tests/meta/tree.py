# SPDX-License-Identifier: Apache-2.0
"""The source files of the checkout, for the tests that read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def files(*patterns: str) -> list[Path]:
    """Return the files under the root that match any of the patterns, sorted."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(found)


def c_core() -> list[Path]:
    """Return the C sources and headers that must not know Python."""
    return files("csrc/**/*.[ch]", "kernels/**/*.[ch]", "kernels/**/*.cu", "kernels/**/*.cuh")


def binding() -> list[Path]:
    """Return the C sources and headers of the binding."""
    return files("python/src/*.[ch]")


def python_sources() -> list[Path]:
    """Return the package's Python files."""
    return files("python/paceline/**/*.py")


def name(path: Path) -> str:
    """Return the path relative to the root, as it stands in a message."""
    return path.relative_to(ROOT).as_posix()


def without_comments(text: str) -> str:
    """Return C text with comments and string contents blanked; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        kept = match.group(0)
        if kept.startswith('"'):
            return '""' + "\n" * kept.count("\n")
        return " " + "\n" * kept.count("\n")

    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, blank, text, flags=re.DOTALL)
