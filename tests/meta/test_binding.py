# SPDX-License-Identifier: Apache-2.0
"""The binding: the GIL, the symbols of the binary, and the stub that describes it."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meta import tree
from paceline import _C

# Python 3.12 gives every type with the buffer protocol this name; the stub needs it for mypy.
GIVEN_BY_PYTHON = {"__buffer__"}

STUB = tree.ROOT / "python" / "paceline" / "_C.pyi"


@pytest.mark.parametrize("path", tree.binding(), ids=tree.name)
def test_nothing_of_python_without_the_gil(path: Path) -> None:
    text = tree.without_comments(path.read_text())
    blocks = re.finditer(r"Py_BEGIN_ALLOW_THREADS(.*?)Py_END_ALLOW_THREADS", text, flags=re.DOTALL)
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        bad = re.search(r"\bPy\w*\s*\(|\bPy_\w+|\breturn\b|\bgoto\b", block.group(1))
        assert bad is None, f"{tree.name(path)}:{line}: {bad and bad.group(0)} without the GIL"
    begun, ended = text.count("Py_BEGIN_ALLOW_THREADS"), text.count("Py_END_ALLOW_THREADS")
    assert begun == ended


def test_the_binary_shows_one_symbol() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    command = [nm, "-D", "--defined-only", _C.__file__]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1] for line in listed.splitlines()}
    assert symbols == {"PyInit__C"}


def stub_names() -> tuple[set[str], dict[str, set[str]]]:
    """Return the functions and, for each class, the methods and attributes of the stub."""
    functions, classes = set(), {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            functions.add(node.name)
        elif isinstance(node, ast.ClassDef):
            members = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            members |= {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            classes[node.name] = members
    return functions, classes


def test_functions_are_those_of_the_stub() -> None:
    functions, _ = stub_names()
    actual = {name for name, value in vars(_C).items() if inspect.isbuiltin(value)}
    assert actual == functions


def test_classes_have_the_members_of_the_stub() -> None:
    _, classes = stub_names()
    actual = {name for name, value in vars(_C).items() if inspect.isclass(value)}
    assert actual == set(classes)
    for name, members in classes.items():
        own = vars(getattr(_C, name))
        missing = {member for member in members if not hasattr(getattr(_C, name), member)}
        missing -= GIVEN_BY_PYTHON
        assert not missing, f"_C.{name} lacks {missing}"
        extra = {member for member in own if not member.startswith("__")} - members
        assert not extra, f"_C.pyi does not describe {name}.{extra}"
