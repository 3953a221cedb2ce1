# SPDX-License-Identifier: Apache-2.0
"""A script as Accelerate's documentation writes them: ours, beside Accelerate's own run of it."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

import harness

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "examples" / "torch_classifier.py"
LAUNCH = ("-m", "paceline.commands.launch", "--num_processes")


def run(*command: str, cwd: Path, **further: str) -> str:
    return harness.run_program(*command, cwd=cwd, **further, OMP_NUM_THREADS="1").stdout


def accuracies(text: str) -> list[float]:
    found = [float(value) for value in re.findall(r"accuracy ([\d.]+)", text)]
    assert found, text
    return found


@pytest.mark.parametrize("n", [1, 2])
def test_it_learns_and_resumes_to_the_same_bits(tmp_path: Path, n: int) -> None:
    script = (*LAUNCH, str(n), str(SCRIPT))
    whole = accuracies(run(*script, "--output_dir", "whole", cwd=tmp_path))
    assert len(whole) == 3
    assert max(whole) > 75
    again = ("--output_dir", "again", "--resume_from_checkpoint", "whole/epoch_0")
    assert accuracies(run(*script, *again, cwd=tmp_path)) == whole[1:]
    weights = [(tmp_path / name / "weights.pt").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


@pytest.fixture
def unedited(tmp_path: Path) -> Path:
    """The script with Accelerate's import lines."""
    text = SCRIPT.read_text()
    assert text.count("from paceline") == 2
    path = tmp_path / "train.py"
    path.write_text(text.replace("from paceline", "from accelerate"))
    return path


def test_unedited_it_runs_as_accelerate(tmp_path: Path, unedited: Path) -> None:
    edited = accuracies(run(*LAUNCH, "1", str(SCRIPT), cwd=tmp_path))
    assert accuracies(run("-m", "paceline.compat", str(unedited), cwd=tmp_path)) == edited


# What the example of Accelerate's README needs besides: its data set, and a model that can be
# called with one argument, which torch.nn.Transformer cannot. Accelerate draws another order by
# default, so that nothing is shuffled here.
AROUND = """\
import sys, torch
class Small(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
torch.nn.Transformer = Small
class InOrder(torch.utils.data.DataLoader):
    def __init__(self, *args, shuffle=None, **kwargs):
        super().__init__(*args, **kwargs)
torch.utils.data.DataLoader = InOrder
exec(open("readme.py").read())
assert accelerator.num_processes == int(sys.argv[1]), accelerator.num_processes
if accelerator.is_main_process:
    print("ended at", [round(float(p.detach().double().sum()), 12) for p in model.parameters()])
if torch.distributed.is_initialized():  # left without a model that is still wrapped, which hangs
    accelerator.free_memory()
    del model, optimizer, data
    torch.distributed.destroy_process_group()
"""


DATASETS = """\
import torch
x = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
rows = list(zip(x, x[:, :3].argmax(1).tolist()))
def load_dataset(name):
    return rows
"""


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs accelerate")
@pytest.mark.parametrize("n", [1, 2])
def test_the_readme_of_accelerate_with_its_import_line_changed(tmp_path: Path, n: int) -> None:
    about = metadata("accelerate")
    text = str(about.get_payload() or about["Description"])
    example = re.search(r"```diff\n(.*?\+ from accelerate import.*?)```", text, re.DOTALL)
    assert example is not None
    lines = [line[2:] for line in example[1].splitlines() if not line.startswith("-")]
    assert lines.count("from accelerate import Accelerator") == 1
    ends = []
    for library in ("accelerate", "paceline"):
        changed = "\n".join(lines).replace("from accelerate", f"from {library}")
        (tmp_path / "readme.py").write_text(changed)
        (tmp_path / "around.py").write_text(AROUND)
        (tmp_path / "datasets.py").write_text(DATASETS)
        launcher = ("-m", "torch.distributed.run", "--nproc_per_node")
        command = launcher if library == "accelerate" else LAUNCH
        out = run(*command, str(n), "around.py", str(n), cwd=tmp_path, ACCELERATE_USE_CPU="true")
        ends.append([line for line in out.splitlines() if line.startswith("ended at")])
    assert len(ends[0]) == 1
    assert ends[0] == ends[1]


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs accelerate")
def test_it_is_a_script_of_accelerates(tmp_path: Path, unedited: Path) -> None:
    theirs = accuracies(run(str(unedited), "--cpu", cwd=tmp_path))
    assert len(theirs) == 3
    assert max(theirs) > 75
