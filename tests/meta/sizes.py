# SPDX-License-Identifier: Apache-2.0
"""Sizes of files and functions against their budgets; `make stats` prints them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from meta import tree

FILE_BUDGET, FILE_LIMIT = 500, 1000
FUNCTION_BUDGET, FUNCTION_LIMIT = 60, 150

Sized = tuple[str, int]  # what ("file" or "file:function"), lines


def c_functions(path: Path) -> Iterator[Sized]:
    """Yield each function of a C file: from the line of its name to its closing brace.

    Relies on the house format: a definition begins and ends in the first column.
    """
    text = tree.without_comments(path.read_text())
    end = 0
    for match in re.finditer(r"^[A-Za-z_][^;{}#=]*\([^;{}#]*\)\s*\{", text, re.MULTILINE):
        if match.start() < end:
            continue
        end = text.find("\n", match.end())
        if not text[match.end() : end].rstrip().endswith("}"):  # else all of it is on one line
            end = text.find("\n}", match.end()) + 2
        name = match.group(0).split("(")[0].split()[-1].lstrip("*")
        yield f"{tree.name(path)}:{name}", text[match.start() : end].count("\n") + 1


def python_functions(path: Path) -> Iterator[Sized]:
    """Yield each function of a Python file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            # A docstring is documentation: the budget is for code.
            lines -= docstring.count("\n") + 1 if docstring else 0
            yield f"{tree.name(path)}:{node.name}", lines


def file_sizes() -> list[Sized]:
    """Return the lines of every source file."""
    paths = [*tree.c_core(), *tree.binding(), *tree.python_sources()]
    paths += tree.files("tests/**/*.py", "tests/**/*.[ch]", "examples/*.py", "benchmarks/**/*.py")
    return [(tree.name(path), len(path.read_text().splitlines())) for path in paths]


def function_sizes() -> list[Sized]:
    """Return the lines of every function of the C core, the binding and the package."""
    found = [size for path in [*tree.c_core(), *tree.binding()] for size in c_functions(path)]
    found += [size for path in tree.python_sources() for size in python_functions(path)]
    return found


def main() -> None:
    """Print median, 90th percentile and the largest of files and functions."""
    for title, sizes, budget in (
        ("files", file_sizes(), FILE_BUDGET),
        ("functions", function_sizes(), FUNCTION_BUDGET),
    ):
        lines = sorted(size for _, size in sizes)
        p50, p90 = lines[len(lines) // 2], lines[len(lines) * 9 // 10]
        over = [item for item in sizes if item[1] > budget]
        print(f"{title}: {len(lines)}, median {p50} lines, 90 % within {p90}, budget {budget}")
        for what, size in sorted(over, key=lambda item: -item[1]):
            print(f"  {size:5} {what}")


if __name__ == "__main__":
    main()
