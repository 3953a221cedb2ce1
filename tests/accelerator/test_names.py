# SPDX-License-Identifier: Apache-2.0
"""docs/from_accelerate.md promises what is there, and misses no name that scripts import."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paceline
from paceline import Accelerator, PartialState
from paceline.absent import MEMBERS, NAMES
from paceline.state import AcceleratorState, GradientState

PAGE = Path(__file__).parents[2] / "docs" / "from_accelerate.md"
MARKS = ("same", "better", "not here")


def _tables() -> dict[str, dict[str, str]]:
    """Give, for each heading, the mark of each name of its table."""
    found: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            names = found.setdefault(line[3:], {})
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert cells[1] in MARKS, line
            for name in re.findall(r"`([\w.]+)`", cells[0]):
                assert name not in names, f"{name} stands twice"
                names[name] = cells[1]
    return found


def _members(owner: object) -> set[str]:
    """Public names; submodules come and go with what was imported, so they do not count."""
    public = {name for name in dir(owner) if not name.startswith("_")}
    return {name for name in public if not inspect.ismodule(inspect.getattr_static(owner, name))}


TABLES = _tables()
ARGUMENTS = TABLES["Arguments of `Accelerator`"]
ACCELERATOR = TABLES["Members of `Accelerator`"]
PARTIAL = TABLES["Members of `PartialState`"]
STATES = TABLES["Members of `AcceleratorState` and `GradientState`"]
TOP = TABLES["Names of `accelerate`"]
UTILS = TABLES["Names of `accelerate.utils`"]


def _here(table: dict[str, str]) -> list[str]:
    return [name for name, mark in table.items() if mark != "not here"]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(mixed_precision="fp16")


@pytest.mark.parametrize("name", _here(ACCELERATOR))
def test_member_of_the_page_exists(accelerator: Accelerator, name: str) -> None:
    if name.endswith("_rank"):
        with pytest.raises((RuntimeError, NotImplementedError), match="parallel"):
            getattr(accelerator, name)
    else:
        getattr(accelerator, name)


@pytest.mark.parametrize("name", _here(PARTIAL))
def test_member_of_the_default_state_exists(name: str) -> None:
    getattr(PartialState(), name)


@pytest.mark.parametrize("name", _here(STATES))
def test_member_of_a_state_exists(accelerator: Accelerator, name: str) -> None:
    owner, _, member = name.partition(".")
    state = {"AcceleratorState": accelerator.state, "GradientState": accelerator.gradient_state}
    getattr(state[owner], member)


@pytest.mark.parametrize("name", _here(TOP))
def test_name_of_the_package_exists(name: str) -> None:
    getattr(paceline, name)


@pytest.mark.parametrize("name", _here(UTILS))
def test_name_of_utils_exists(name: str) -> None:
    try:
        getattr(paceline.utils, name)
    except AttributeError:
        importlib.import_module(f"paceline.utils.{name}")


@pytest.mark.parametrize("name", _here(TABLES["Other modules"]))
def test_name_of_another_module_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    getattr(importlib.import_module(f"paceline.{module}"), attribute)


@pytest.mark.parametrize("name", _here(TABLES["Configuration classes"]))
def test_configuration_class_exists_and_is_frozen(name: str) -> None:
    kind = getattr(paceline.utils, name)
    # Libraries set fields of that one; an Accelerator keeps a copy.
    assert kind.__dataclass_params__.frozen == (name != "DataLoaderConfiguration")


def test_arguments_are_accelerates_in_their_order() -> None:
    assert set(ARGUMENTS) == set(inspect.signature(Accelerator).parameters)
    original = pytest.importorskip("accelerate").Accelerator
    theirs = list(inspect.signature(original).parameters)
    assert list(inspect.signature(Accelerator).parameters) == theirs


def test_what_is_not_here_is_in_the_one_table_of_reasons() -> None:
    absent = {name for table in (TOP, UTILS) for name, mark in table.items() if mark == "not here"}
    assert absent == set(NAMES)
    assert {name for name, mark in ACCELERATOR.items() if mark == "not here"} == set(MEMBERS)


def test_no_name_of_accelerate_is_missing_from_the_page() -> None:
    original = pytest.importorskip("accelerate")
    assert _members(original.Accelerator) - set(ACCELERATOR) == set()
    assert _members(original.PartialState) - set(PARTIAL) == set()
    assert _members(original) - set(TOP) == set()
    assert _members(importlib.import_module("accelerate.utils")) - set(UTILS) == set()
    states = importlib.import_module("accelerate.state")
    for theirs in (states.AcceleratorState, states.GradientState):
        for name in _members(theirs):
            assert f"{theirs.__name__}.{name}" in STATES or name in PARTIAL, name


# --- names that are not here say why --------------------------------------------------------------


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "from paceline import FullyShardedDataParallelPlugin",
            "ImportError: paceline has no FullyShardedDataParallelPlugin: parameters are not "
            "sharded over processes; data parallel training needs no plugin",
        ),
        (
            "from paceline.utils import merge_fsdp_weights",
            "ImportError: paceline.utils has no merge_fsdp_weights: parameters are not sharded "
            "over processes; data parallel training needs no plugin",
        ),
        (
            "import paceline; paceline.init_empty_weights",
            "AttributeError: paceline has no init_empty_weights: models larger than one device's "
            "memory are out of scope; make the model on the CPU",
        ),
    ],
)
def test_a_name_that_is_not_here_says_why(code: str, said: str) -> None:
    assert _run(code) == said


def test_a_name_that_never_was_is_not_explained() -> None:
    assert not hasattr(paceline, "dispatch_model"), "hasattr stays usable"
    with pytest.raises(AttributeError, match="module 'paceline' has no attribute 'nonsense'"):
        _ = paceline.nonsense
    with pytest.raises(AttributeError, match=r"'paceline.utils' has no attribute 'is_nonsense'"):
        _ = paceline.utils.is_nonsense


def test_states_can_be_imported_as_scripts_do() -> None:
    assert AcceleratorState is paceline.state.AcceleratorState
    assert GradientState is paceline.state.GradientState
