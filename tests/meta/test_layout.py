# SPDX-License-Identifier: Apache-2.0
"""Who may include whom, and other rules of the house that a reader of one file cannot see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meta import sizes, tree

# What a room may include besides itself. `kernels` is kernels/kernels.h; the folders below it know
# neither each other nor anything that stands on the table.
BELOW = {
    "base": set(),
    "comm": {"base"},
    "tensor": {"base"},
    "kernels": {"base", "tensor"},
    "kernels/ref": {"base", "tensor", "kernels"},
    "kernels/cpu": {"base", "tensor", "kernels"},
    "kernels/cuda": {"base", "tensor", "kernels"},
    "ops": {"base", "tensor", "kernels"},
    "autograd": {"base", "tensor", "kernels", "ops"},
    "amp": {"base", "tensor", "kernels", "ops", "autograd"},
    "optim": {"base", "tensor", "kernels", "ops", "autograd"},
    "ddp": {"base", "tensor", "kernels", "ops", "autograd", "comm"},
    "data": {"base", "tensor"},
    "io": {"base", "tensor"},
}


def room(path: Path) -> str:
    parts = path.relative_to(tree.ROOT).parts
    if parts[0] == "csrc":
        return parts[1]
    return f"kernels/{parts[1]}" if len(parts) > 2 else "kernels"


def included(path: Path) -> list[tuple[str, Path | None]]:
    """Return the quoted includes of a file, each with the file it means."""
    found = []
    for text in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
        places = (path.parent, tree.ROOT / "csrc", tree.ROOT / "kernels")
        hits = [place / text for place in places if (place / text).exists()]
        found.append((text, hits[0].resolve() if hits else None))
    return found


@pytest.mark.parametrize("path", tree.c_core(), ids=tree.name)
def test_includes_point_down(path: Path) -> None:
    for text, target in included(path):
        assert target is not None, f'{tree.name(path)}: "{text}" is no file of csrc/ or kernels/'
        here, there = room(path), room(target)
        assert there == here or there in BELOW[here], (
            f"{tree.name(path)} ({here}) includes {text} ({there}), which stands above it"
        )


def test_every_room_is_in_the_rules() -> None:
    assert {room(path) for path in tree.c_core()} <= set(BELOW)


def test_only_the_binding_knows_python() -> None:
    for path in tree.c_core():
        assert "Python.h" not in path.read_text(), tree.name(path)


def test_only_one_file_names_onednn() -> None:
    users = [
        path for path in tree.c_core() if re.search(r"#\s*include\s*<.*dnnl", path.read_text())
    ]
    assert {room(path) for path in users} <= {"kernels/cpu"}
    assert len(users) <= 1, [tree.name(path) for path in users]


@pytest.mark.parametrize("path", tree.c_core(), ids=tree.name)
def test_the_core_neither_prints_nor_ends_the_process(path: Path) -> None:
    # A function may be called x.exit or pl_x_abort: only the C library's own names are meant.
    pattern = r"(?<![\w.>])(printf|fprintf|vfprintf|puts|putchar|perror|abort|exit|_exit)\s*\("
    for number, line in enumerate(tree.without_comments(path.read_text()).splitlines(), 1):
        assert not re.search(pattern, line), f"{tree.name(path)}:{number}: {line.strip()}"


@pytest.mark.parametrize(
    "path",
    [
        *tree.c_core(),
        *tree.binding(),
        *tree.python_sources(),
        *tree.files("tests/**/*.[ch]", "tests/**/*.cc"),
    ],
    ids=tree.name,
)
def test_the_first_line_names_the_licence(path: Path) -> None:
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    if lines:
        assert re.fullmatch(r"(//|#) SPDX-License-Identifier: Apache-2.0", lines[0])


def test_every_environment_variable_is_documented() -> None:
    documented = {
        name
        for page in ("env_vars.md", "build.md")
        for name in re.findall(r"`(PACELINE_\w+)", (tree.ROOT / "docs" / page).read_text())
    }
    sources = [*tree.c_core(), *tree.binding(), *tree.python_sources()]
    sources += tree.files("examples/*.py", "setup.py", "cmake/*.cmake")
    for path in sources:
        for variable in re.findall(r"""["'](PACELINE_[A-Z0-9_]+)["']""", path.read_text()):
            assert variable in documented, (
                f"{tree.name(path)} reads {variable}: expected a line in docs/env_vars.md"
            )


def test_files_stay_below_the_hard_limit() -> None:
    over = [(what, n) for what, n in sizes.file_sizes() if n > sizes.FILE_LIMIT]
    assert not over, f"files of more than {sizes.FILE_LIMIT} lines: {over}"


def test_functions_stay_below_the_hard_limit() -> None:
    over = [(what, n) for what, n in sizes.function_sizes() if n > sizes.FUNCTION_LIMIT]
    assert not over, f"functions of more than {sizes.FUNCTION_LIMIT} lines: {over}"


def test_the_readme_names_the_folders_that_exist() -> None:
    readme = (tree.ROOT / "README.md").read_text()
    for folder in re.findall(r"^\| `([\w/]+/)`", readme, re.MULTILINE):
        assert (tree.ROOT / folder).is_dir(), folder
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (tree.ROOT / link).exists(), link
    for script in re.findall(r"\b(examples/\w+\.py)", readme):
        assert (tree.ROOT / script).is_file(), script
