# SPDX-License-Identifier: Apache-2.0
"""Training scripts under every launcher, and what a failure in one rank looks like there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launching import environment, launch, start

# As people type it: no seed, nothing that depends on the launcher.
SCRIPT = """
import sys
import paceline as torch
from paceline import Accelerator
accelerator = Accelerator()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    accelerator.backward(model(batch).square().mean())
    optimizer.step()
    optimizer.zero_grad()
weights = accelerator.gather(next(iter(model.parameters())).detach())
same = all(row == weights.tolist()[0] for row in weights.tolist())
sys.stdout.write(f"RANK {accelerator.process_index} of {accelerator.num_processes}"
                 f" {accelerator.mixed_precision} same {same}\\n")
"""
EXPECTED = ["RANK 0 of 2 no same True", "RANK 1 of 2 no same True"]


def ranks(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("RANK"))


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    run = launch(tmp_path, SCRIPT)
    assert run.code == 0, run.stderr
    assert ranks(run.stdout) == EXPECTED
    said = "paceline: 2 processes on cpu, precision no; global batch 4 = 2 per process x 2 x 1"
    assert run.stderr == f"{said} accumulated, 4 steps per epoch\n"
    print(f"paceline launch: {run.seconds:.2f} s from start to exit")


def test_precision_of_the_command_line_arrives(tmp_path: Path) -> None:
    run = launch(tmp_path, SCRIPT, "--mixed_precision", "bf16", n=1)
    assert ranks(run.stdout) == ["RANK 0 of 1 bf16 same True"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"],
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
        + ["--main_process_port=0"],
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_other_launchers_run_the_same_script(tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("torch" if "torch.distributed.run" in words else "accelerate")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *words, "script.py"],
        env=environment("", {"OMP_NUM_THREADS": "1"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert ranks(done.stdout) == EXPECTED


def test_a_rank_that_raises_is_blamed(tmp_path: Path) -> None:
    script = """
    import paceline
    from paceline import Accelerator
    accelerator = Accelerator()
    accelerator.wait_for_everyone()
    if accelerator.process_index == 1:
        raise KeyError("weight")
    accelerator.wait_for_everyone()
    """
    run = launch(tmp_path, script)
    assert run.code == 1
    assert run.stderr.count("Traceback (most recent call last)") == 1
    assert "KeyError: 'weight'\npaceline launch: rank 1 (pid " in run.stderr
    assert "RemoteError" not in run.stderr
    assert "was stopped" not in run.stderr  # rank 0 was told by rank 1, and left by itself
    print(f"blamed after {run.seconds:.2f} s, start included")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_in_a_collective_is_blamed(tmp_path: Path, victim: int) -> None:
    script = f"""
    import os
    from paceline import Accelerator
    accelerator = Accelerator()
    accelerator.wait_for_everyone()
    if accelerator.process_index == {victim}:
        os.kill(os.getpid(), 9)
    accelerator.wait_for_everyone()
    """
    run = launch(tmp_path, script, n=3)
    assert run.code == 137
    assert f"paceline launch: rank {victim} (pid " in run.stderr
    assert "was killed by SIGKILL" in run.stderr
    assert "PeerLostError" not in run.stderr


def test_a_rank_that_finishes_early_is_named(tmp_path: Path) -> None:
    script = """
    from paceline import Accelerator
    accelerator = Accelerator()
    if accelerator.process_index == 0:
        accelerator.wait_for_everyone()
    """
    run = launch(tmp_path, script)
    assert run.code == 1
    assert run.stderr.count("Traceback (most recent call last)") == 1
    assert "rank 1 finished" in run.stderr


def test_ctrl_c_in_a_collective(tmp_path: Path) -> None:
    import signal

    script = """
    import time
    from paceline import Accelerator
    accelerator = Accelerator()
    accelerator.wait_for_everyone()
    print("UP", flush=True)
    if accelerator.process_index == 1:
        time.sleep(60)
    accelerator.wait_for_everyone()
    """
    with start(tmp_path, script) as running:
        running.until("UP", times=2)
        run = running.end(signal.SIGINT)
        assert run.code == 130
        assert running.left(0.0) == []
        assert run.stderr.count("KeyboardInterrupt") >= 1
        assert run.stderr.count("Traceback (most recent call last)") == 1
        print(f"Ctrl-C in a collective: gone after {run.seconds:.2f} s (promised 2)")


NOTEBOOK = """
import os
import paceline as torch
from paceline import Accelerator, notebook_launcher

first = Accelerator()                         # made before: must not matter
data = torch.randn(32, 4)                     # tensors and layers of the notebook travel
model = torch.nn.Linear(4, 1)

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(data)
    def __getitem__(self, i):
        return data[i]

def train(lr):
    accelerator = Accelerator()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=4)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        accelerator.backward(prepared(batch).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.num_processes, accelerator.mixed_precision, model.state_dict()

before = model.weight.tolist()
for n in (2, 1, 2):
    world, precision, weights = notebook_launcher(train, (0.1,), num_processes=n,
                                                  mixed_precision="bf16" if n == 1 else "no")
    print("RANKS", world, precision, weights["weight"].tolist() != before)
print(first.num_processes, first.mixed_precision)
"""


def test_a_notebook_with_an_accelerator_before(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, "cell.py"],
        env=environment("", None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "RANKS 2 no True",
        "RANKS 1 bf16 True",
        "RANKS 2 no True",
        "1 no",
    ]


@pytest.mark.parametrize(
    ("used", "path"),
    [
        ("accelerator", "global 'accelerator' is a paceline.accelerator.Accelerator"),
        ("loader", "global 'loader' is a paceline.data_loader.DataLoaderShard"),
        ("trainer", "global 'trainer' -> .accelerator is a paceline.accelerator.Accelerator"),
    ],
)
def test_what_belongs_to_the_notebooks_process_is_refused(
    tmp_path: Path, used: str, path: str
) -> None:
    script = f"""
import types
import paceline as torch
from paceline import Accelerator, notebook_launcher
accelerator = Accelerator()
loader = accelerator.prepare(torch.utils.data.DataLoader(torch.randn(8, 2)))
trainer = types.SimpleNamespace(accelerator=accelerator)
def train():
    print({used})
try:
    notebook_launcher(train, num_processes=2)
except TypeError as error:
    print(error)
"""
    (tmp_path / "cell.py").write_text(script)
    env = environment("", None)
    done = subprocess.run(
        [sys.executable, "cell.py"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"[notebook_launcher] train() -> {path}, which cannot be sent" in done.stdout
    assert "(it belongs to the process that made it): create it inside train()" in done.stdout


def test_the_console_script(tmp_path: Path) -> None:
    program = shutil.which("paceline", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("paceline is not installed in this environment")
    (tmp_path / "script.py").write_text("print('RAN')")
    done = subprocess.run([program, "launch", "-n", "2", "script.py"], cwd=tmp_path, timeout=60)
    assert done.returncode == 0
