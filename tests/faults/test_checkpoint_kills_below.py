# SPDX-License-Identifier: Apache-2.0
"""E1 once more, from below: killed at every call of the C library that changes a disk.

``test_checkpoint_kills.py`` stands in the place of Python's ``os``; here a preloaded library counts
the calls, so that none can be missed that is made in another way (``ctypes``, C).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faults import saving
from faults.test_checkpoint_kills import Scene
from harness import _paths

SOURCE = Path(__file__).with_name("kill_below.c")
COMPILER = shutil.which(os.environ.get("CC", "cc"))


def killed_everywhere(place: Path, overwrite: bool, half_way: bool) -> list[str]:
    """What is found after a death at each call; runs in a process with the library preloaded."""
    library = ctypes.CDLL(None)
    scene = Scene(place)
    found = []
    at = 0
    while True:
        scene.reset(overwrite)

        def save(at: int = at) -> None:
            library.kill_below_arm(ctypes.c_long(at), int(half_way))
            scene.tiny.save(scene.dir)
            os._exit(min(library.kill_below_seen(), 255))

        code = saving.ended(saving.fork(save))
        if at == 0:
            calls = code
            assert 20 < calls < 255, f"the calls are not counted: {calls}"
        else:
            assert code == -signal.SIGKILL, (at, code)
            found.append(scene.check(overwrite))
        if at == calls:
            scene.check_next_save()
            return found
        at += 1


SCRIPT = """
import sys
from pathlib import Path
from faults.test_checkpoint_kills_below import killed_everywhere
print(*killed_everywhere(Path(sys.argv[1]), sys.argv[2] == "over", sys.argv[3] == "half"))
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded")
@pytest.mark.parametrize(
    ("overwrite", "where"), [("new", "before"), ("over", "before"), ("over", "half")]
)
def test_kill_at_every_call_from_below(tmp_path: Path, overwrite: str, where: str) -> None:
    library = tmp_path / "kill_below.so"
    flags = ["-std=c17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([str(COMPILER), *flags, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(_paths())}
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), overwrite, where],
        env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    before = "old" if overwrite == "over" else "none"
    turn = found.index("new")
    assert turn > 20
    assert found == [before] * turn + ["new"] * (len(found) - turn)
