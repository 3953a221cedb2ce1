# SPDX-License-Identifier: Apache-2.0
"""``import accelerate`` as paceline: for scripts, not for libraries, and beside Accelerate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with paceline on the path."""
    path = ":".join(harness._paths())
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SCRIPT = """\
import sys
import accelerate
import accelerate.utils
import accelerate.utils as shortened
from accelerate import Accelerator
from accelerate.utils import set_seed, ProjectConfiguration
from accelerate.logging import get_logger
from helper import also

assert accelerate.__name__ == "paceline", accelerate
assert accelerate.utils is shortened
assert shortened.__name__ == "paceline.utils"
assert Accelerator.__module__.startswith("paceline")
assert also is Accelerator
assert sys.argv == ["script.py", "--flag"], sys.argv
assert "torch" not in sys.modules
print("trained on", Accelerator().device)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("from accelerate import Accelerator as also\n")
    return tmp_path


def test_a_script_that_cannot_be_edited_runs(script: Path) -> None:
    done = python("-m", "paceline.compat", "script.py", "--flag", cwd=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained on cpu\n"


def test_a_module_runs(script: Path) -> None:
    text = (script / "script.py").read_text().replace("assert sys.argv ==", "sys.argv ==")
    (script / "as_module.py").write_text(text)
    done = python("-m", "paceline.compat", "-m", "as_module", cwd=script)
    assert done.returncode == 0, done.stderr


def test_without_a_script_it_says_what_to_write(tmp_path: Path) -> None:
    done = python("-m", "paceline.compat", cwd=tmp_path)
    assert done.returncode == 1
    assert "expected `python -m paceline.compat script.py ...`" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from accelerate import init_empty_weights", "larger than one device's memory"),
        ("from accelerate.utils import DeepSpeedPlugin", "paceline.utils has no DeepSpeedPlugin"),
        ("import accelerate.big_modeling", "paceline has no big_modeling: models larger"),
        ("from accelerate.test_utils.training import x", "no counterpart to accelerate.test_utils"),
        ("from accelerate import nonsense", "cannot import name 'nonsense'"),
    ],
)
def test_names_that_are_not_here_say_so(tmp_path: Path, line: str, message: str) -> None:
    done = python("-c", f"from paceline.compat import install; install()\n{line}", cwd=tmp_path)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert message in done.stderr


LIBRARY = "import accelerate\ndef name(): return accelerate.__name__\n"


def test_installed_libraries_keep_their_accelerate(tmp_path: Path) -> None:
    for package in ("accelerate", "oldlib", "newlib"):
        home = tmp_path / "site-packages" / package
        home.mkdir(parents=True)
        (home / "__init__.py").write_text("here = 'theirs'\n" if package == "accelerate" else "")
        (home / "use.py").write_text(LIBRARY)
    text = (
        "import sys; sys.path.insert(0, 'site-packages')\n"
        "from paceline.compat import install, uninstall\n"
        "install(libraries=['newlib'])\n"
        "import accelerate, oldlib.use, newlib.use\n"
        "assert accelerate.__name__ == 'paceline'\n"
        "assert oldlib.use.name() == 'accelerate'\n"
        "assert newlib.use.name() == 'paceline'\n"
        "uninstall()\n"
        "import accelerate\n"
        "assert accelerate.here == 'theirs'\n"
    )
    (tmp_path / "both.py").write_text(text)
    done = python("both.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


NEEDY = """\
import accelerate
import accelerate.parallelism_config
import accelerate.utils.memory
from accelerate import Accelerator, PartialState
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedPlugin, TorchDynamoPlugin, gather, nonsense
from accelerate.utils.memory import clear_device_cache, release_memory

assert accelerate.__name__ == "paceline" and Accelerator.__module__ == "paceline.accelerator"
assert accelerate.parallelism_config.ParallelismConfig is ParallelismConfig
assert not isinstance(3, DeepSpeedPlugin)
assert accelerate.utils.gather is gather
assert accelerate.utils.memory.release_memory is release_memory
"""


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("needy.DeepSpeedPlugin(stage=2)", "DeepSpeed is not used; data parallel training needs"),
        ("needy.ParallelismConfig(tp_size=2)", "only data parallelism is built"),
        ("needy.DeepSpeedPlugin.from_file", "paceline has no DeepSpeedPlugin: DeepSpeed is not"),
        ("needy.nonsense()", "no counterpart to accelerate.utils.nonsense"),
        ("needy.TorchDynamoPlugin('inductor')", "got 'inductor', expected None: use torch.compile"),
        ("needy.Accelerator(dynamo_plugin=needy.TorchDynamoPlugin())", ""),
        ("needy.Accelerator(dynamo_plugin=object())", "dynamo_plugin"),
    ],
)
def test_a_library_meets_what_is_not_here_when_it_uses_it(
    tmp_path: Path, use: str, message: str
) -> None:
    home = tmp_path / "site-packages"
    home.mkdir()
    (home / "needy.py").write_text(NEEDY)
    head = "import sys; sys.path.insert(0, 'site-packages')\nfrom paceline.compat import install\n"
    done = python("-c", f"{head}install(['needy'])\nimport needy\n{use}", cwd=tmp_path)
    if message:
        assert done.returncode == 1
        assert "NotImplementedError" in done.stderr
        assert message in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_accelerate_and_paceline_do_not_disturb_each_other(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    text = (
        "import accelerate, paceline, torch\n"
        "ours, theirs = paceline.Accelerator(), accelerate.Accelerator(cpu=True)\n"
        "assert type(ours) is not type(theirs)\n"
        "a = ours.prepare(torch.nn.Linear(2, 2))\n"
        "b = theirs.prepare(torch.nn.Linear(2, 2))\n"
        "for one, model in ((ours, a), (theirs, b)):\n"
        "    with one.accumulate(model):\n"
        "        one.backward(model(torch.ones(1, 2)).sum())\n"
        "assert ours.device == theirs.device\n"
        "assert a.weight.grad is not None and b.weight.grad is not None\n"
    )
    (tmp_path / "both.py").write_text(text)
    done = python("both.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
