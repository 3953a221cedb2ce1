# SPDX-License-Identifier: Apache-2.0
"""The precision of float32 products: PyTorch's names, and that the CPU's stay exact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import paceline


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    paceline.set_float32_matmul_precision("highest")


def test_the_default() -> None:
    assert paceline.get_float32_matmul_precision() == "highest"
    assert paceline.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(("name", "allows"), [("high", True), ("medium", True), ("highest", False)])
def test_two_names_of_one_setting(name: str, allows: bool) -> None:
    paceline.set_float32_matmul_precision(name)
    assert paceline.get_float32_matmul_precision() == name
    assert paceline.backends.cuda.matmul.allow_tf32 is allows
    paceline.backends.cuda.matmul.allow_tf32 = not allows
    assert paceline.get_float32_matmul_precision() == ("highest" if allows else "high")


def test_the_names_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    for name in ("high", "medium", "highest"):
        torch.set_float32_matmul_precision(name)
        paceline.set_float32_matmul_precision(name)
        ours, theirs = paceline.backends.cuda.matmul, torch.backends.cuda.matmul
        assert ours.allow_tf32 == theirs.allow_tf32


@pytest.mark.parametrize("name", ["high", "medium"])
def test_the_cpu_stays_exact(name: str) -> None:
    x = paceline.full((64, 64), 1 + 2.0**-12)
    exact = (x @ x).tolist()
    assert exact[0][0] > 64
    paceline.set_float32_matmul_precision(name)
    assert (x @ x).tolist() == exact


def test_what_is_refused() -> None:
    for wrong in ("low", "HIGH", None):
        with pytest.raises(ValueError, match="'highest', 'high' or 'medium'"):
            paceline.set_float32_matmul_precision(wrong)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="got 1, expected True or False"):
        paceline.backends.cuda.matmul.allow_tf32 = 1  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="allow_tf_32"):
        paceline.backends.cuda.matmul.allow_tf_32 = True  # type: ignore[attr-defined]
    assert paceline.get_float32_matmul_precision() == "highest"


def test_it_touches_no_driver() -> None:
    code = (
        "import sys, paceline\n"
        "assert 'paceline.backends' not in sys.modules\n"
        "paceline.backends.cuda.matmul.allow_tf32 = True\n"
        "assert not paceline.cuda.is_initialized()\n"
        "print(paceline.backends.cuda.is_built() in (True, False))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
