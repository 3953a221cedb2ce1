# SPDX-License-Identifier: Apache-2.0
"""Launching where there are GPUs: two virtual ones, which commands find as they would real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import vcuda
from launching import command, launch

DEVICES = """
from paceline import Accelerator
import paceline as torch
a = Accelerator()
t = torch.ones(2, device=a.device) * (a.process_index + 1)
total = a.reduce(t).tolist()
print(a.process_index, a.device, a.num_processes, a.distributed_type.value, t.device, total)
"""

# The first script of SCRIPTS: prepared on whatever there is, without a word about devices.
TRAIN = """
import paceline as torch
from paceline import Accelerator
accelerator = Accelerator()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
data = torch.utils.data.TensorDataset(torch.randn(64, 10), torch.randint(0, 2, (64,)))
loader = torch.utils.data.DataLoader(data, batch_size=8)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
criterion = torch.nn.CrossEntropyLoss()
for epoch in range(2):
    for x, y in loader:
        loss = criterion(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    mean = accelerator.gather(loss.detach()).mean().item()
    accelerator.print(f"{accelerator.device.type} {epoch} {mean:.5f}")
"""


@pytest.fixture
def gpus() -> dict[str, str]:
    return vcuda.variables(worker=True, devices=2)


def lines(text: str) -> list[str]:
    return sorted(text.splitlines())


def test_one_process_for_each_gpu_by_default(tmp_path: Path, gpus: dict[str, str]) -> None:
    (tmp_path / "s.py").write_text(DEVICES)
    run = command(tmp_path, "launch", "s.py", env=gpus)
    assert run.code == 0, run.stderr
    assert lines(run.stdout) == [
        "0 cuda:0 2 MULTI_GPU cuda:0 [3.0, 3.0]",
        "1 cuda:1 2 MULTI_GPU cuda:1 [3.0, 3.0]",
    ]


def test_one_process_is_on_cuda_without_a_number(tmp_path: Path, gpus: dict[str, str]) -> None:
    (tmp_path / "s.py").write_text(DEVICES)
    expected = ["0 cuda 1 NO cuda:0 [1.0, 1.0]"]
    for flags in (("--num_processes", "1"), ("--gpu_ids", "1"), ("--multi_gpu", "-n", "1")):
        run = command(tmp_path, "launch", *flags, "s.py", env=gpus)
        assert run.code == 0, run.stderr
        assert lines(run.stdout) == expected
    run = command(tmp_path, "launch", "s.py", env={**gpus, "CUDA_VISIBLE_DEVICES": "1"})
    assert lines(run.stdout) == expected


def test_the_cpu_where_that_is_asked(tmp_path: Path, gpus: dict[str, str]) -> None:
    (tmp_path / "s.py").write_text(DEVICES)
    expected = ["0 cpu 2 MULTI_CPU cpu [3.0, 3.0]", "1 cpu 2 MULTI_CPU cpu [3.0, 3.0]"]
    run = command(tmp_path, "launch", "--cpu", "-n", "2", "s.py", env=gpus)
    assert lines(run.stdout) == expected, run.stderr
    run = command(tmp_path, "launch", "-n", "2", "s.py", env={**gpus, "ACCELERATE_USE_CPU": "true"})
    assert lines(run.stdout) == expected, run.stderr


def test_refusals(tmp_path: Path, gpus: dict[str, str]) -> None:
    (tmp_path / "s.py").write_text(DEVICES)
    run = command(tmp_path, "launch", "-n", "3", "s.py", env=gpus)
    assert run.code == 2
    assert "3 processes are asked for, but only 2 GPUs can be seen" in run.stderr
    run = command(tmp_path, "launch", "--gpu_ids", "0,5", "s.py", env=gpus)
    assert run.code == 2
    assert "--gpu_ids names GPUs 0,5, but this machine has 2: 0 to 1" in run.stderr


def test_training_differs_from_the_cpus_by_the_device_alone(
    tmp_path: Path, gpus: dict[str, str]
) -> None:
    here = launch(tmp_path, TRAIN, "--cpu", env=gpus)
    there = launch(tmp_path, TRAIN, env=gpus)
    assert here.code == there.code == 0, here.stderr + there.stderr
    assert "2 processes on cpu, precision no; global batch 16" in here.stderr
    assert "2 processes on cuda, precision no; global batch 16" in there.stderr
    for line, other in zip(lines(here.stdout), lines(there.stdout), strict=True):
        kind, epoch, loss = line.split()
        assert (kind, epoch) == ("cpu", other.split()[1])
        assert other.split()[0] == "cuda"
        assert abs(float(loss) - float(other.split()[2])) < 5e-5  # five digits are printed


def test_the_machines_own_check_runs_on_the_gpus(tmp_path: Path, gpus: dict[str, str]) -> None:
    run = command(tmp_path, "test", env=gpus)
    assert run.code == 0, run.stdout + run.stderr
    assert "ok: 2 of 2 processes take part" in run.stdout
    assert "4 steps give the weights of one process" in run.stdout


NOTEBOOK = """
import paceline as torch
from paceline import Accelerator, notebook_launcher

def train():
    a = Accelerator()
    return str(a.device), a.num_processes, a.reduce(torch.ones(1, device=a.device)).item()

if {used}:
    print(torch.ones(3, device="cuda").sum().item())
print(notebook_launcher(train{count}))
"""


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("count", ["", ", num_processes=2"])
def test_a_notebook_that_has_used_cuda_may_launch(
    tmp_path: Path, gpus: dict[str, str], used: bool, count: str
) -> None:
    # The processes are fresh interpreters: CUDA's rule about forks does not concern them.
    (tmp_path / "n.py").write_text(NOTEBOOK.format(used=used, count=count))
    run = command(tmp_path, "env", env=gpus)  # the configuration is found with GPUs as well
    assert "num_processes = 2" in " ".join(run.stdout.split())
    done = vcuda.run(
        (tmp_path / "n.py").read_text(), env={**vcuda.environment(worker=True, devices=2)}
    )
    assert done.splitlines()[-1] == "('cuda:0', 2, 2.0)"


def test_what_env_tells(tmp_path: Path, gpus: dict[str, str]) -> None:
    text = command(tmp_path, "env", env=gpus).stdout
    assert f"- CUDA kernels: {gpus['PACELINE_CUDA_LIBRARY']}" in text
    assert f"- cuBLASLt: {gpus['PACELINE_CUBLASLT']} (PACELINE_CUBLASLT)" in text
    assert f"- cuDNN: {gpus['PACELINE_CUDNN']} (PACELINE_CUDNN)" in text
    bare = command(tmp_path, "env", env={"PACELINE_NCCL": "/nowhere/libnccl.so.2"}).stdout
    assert "- NCCL: /nowhere/libnccl.so.2 (PACELINE_NCCL, THERE IS NO SUCH FILE)" in bare
    for line in ("- GPUs: ", "- NVIDIA driver: ", "- CUDA kernels: ", "- cuBLASLt: "):
        assert line in bare
