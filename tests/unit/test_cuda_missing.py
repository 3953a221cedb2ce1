# SPDX-License-Identifier: Apache-2.0
"""What is said where something that a GPU needs is missing: one sentence, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vcuda
from paceline import _cuda_libraries
from paceline._cuda_libraries import LIBRARIES

NAMES = (
    "PACELINE_CUDA_LIBRARY",
    *(library.variable for library in LIBRARIES),
    "CUDA_HOME",
    "CUDA_PATH",
)


def said(code: str, **variables: str) -> str:
    """The last line of stderr of code that is expected to raise."""
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | variables
    done = subprocess.run(
        [sys.executable, "-c", "import paceline as torch\n" + code],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACELINE_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(_cuda_libraries, "_built", lambda: None)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    "ask",
    ["zeros(1, device='cuda')", "ones(1).cuda()", "nn.Linear(1, 1).to('cuda:0')",
     "cuda.synchronize()", "cuda.current_device()", "cuda.mem_get_info()",
     "cuda.Stream()", "cuda.current_stream()", "cuda.default_stream()", "cuda.Event().record()",
     "cuda.init()", "cuda.device(0).__enter__()", "cuda.amp.autocast().__enter__()",
     "autocast('cuda')", "tensor(1, device='cuda')", "randn(1, device='cuda')"],
)  # fmt: skip
def test_a_build_without_cuda(ask: str) -> None:
    import paceline

    with pytest.raises(
        paceline.errors.DeviceError, match="this build has no CUDA: got device 'cuda.*everywhere"
    ):
        eval("paceline." + ask, {"paceline": paceline})


@pytest.mark.usefixtures("without_kernels")
def test_questions_without_cuda() -> None:
    from paceline import cuda

    assert not cuda.is_available()
    assert cuda.device_count() == 0
    assert not cuda.is_bf16_supported()
    assert cuda.memory_allocated() == cuda.max_memory_allocated() == cuda.memory_reserved() == 0
    assert cuda.memory_stats() == {}
    assert cuda.memory_summary() == "no GPU was opened in this process"
    cuda.empty_cache()
    cuda.manual_seed_all(0)
    cuda.seed_all()
    cuda.ipc_collect()
    assert cuda.get_rng_state_all() == []
    assert not cuda.is_current_stream_capturing()
    with cuda.amp.autocast(enabled=False), cuda.device(None):
        assert cuda.amp.GradScaler(enabled=False).get_scale() == 1.0
    with pytest.raises(RuntimeError, match="no CUDA"):
        cuda.get_device_name()


def test_a_library_that_is_not_there() -> None:
    line = said("torch.zeros(1, device='cuda')", PACELINE_CUDA_LIBRARY="/nowhere/_cuda.so")
    assert line.startswith("paceline.errors.DeviceError: [cuda] paceline's CUDA kernels cannot be")
    assert "got PACELINE_CUDA_LIBRARY=/nowhere/_cuda.so" in line
    assert said(
        "assert torch.cuda.is_available()", PACELINE_CUDA_LIBRARY="/nowhere/_cuda.so"
    ).startswith("AssertionError")


def test_a_gpu_without_cublaslt() -> None:
    kernels = vcuda.variables()["PACELINE_CUDA_LIBRARY"]
    code = (
        "x = torch.ones(2, 2, device='cuda')\nassert (x + x).sum().item() == 8\n"
        "(x @ x).sum().item()"
    )
    line = said(code, PACELINE_CUDA_LIBRARY=kernels, PACELINE_CUBLASLT="/nowhere/lt.so")
    assert "[cuda] cuBLASLt cannot be opened: got PACELINE_CUBLASLT=/nowhere/lt.so" in line
    if next(each for each in LIBRARIES if each.name == "CUBLASLT").where()[0] is None:
        line = said(code, PACELINE_CUDA_LIBRARY=kernels)
        assert "pip install 'paceline[cuda13]' brings it" in line


def test_an_index_that_is_not_there() -> None:
    line = said("torch.zeros(1, device='cuda:3')", **vcuda.variables(devices=2))
    assert "DeviceError" in line
    assert "cuda:3" in line or "got 3" in line


def test_what_does_not_fit_is_a_memory_error_and_a_smaller_batch_is_found() -> None:
    code = """
import paceline as torch
keep = torch.zeros(4 << 20, device="cuda")
try:
    torch.zeros(64 << 20, device="cuda")
except torch.cuda.OutOfMemoryError as error:
    print(error)

@torch.find_executable_batch_size(starting_batch_size=64)
def train(batch_size):
    torch.zeros(batch_size << 20, device="cuda")
    return batch_size

print(0 < train() <= 21)
"""
    said, found = vcuda.run(code, env=vcuda.environment(memory=100 << 20)).splitlines()
    assert "out of device memory: got a request of 256 MiB" in said
    assert "16 MiB are in use" in said
    assert found == "True"


def test_libraries_are_found_among_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_cuda_libraries, "_packages", lambda: [str(tmp_path / "nvidia")])
    for library in LIBRARIES:
        assert library.find() is None
        file = tmp_path / "nvidia" / library.folder / library.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert library.find() == str(file)
        assert library.where()[0] == str(file)
        assert library.where()[1].startswith(library.package)
    monkeypatch.setattr(_cuda_libraries, "_packages", lambda: [])
    toolkit = tmp_path / "cuda"
    (toolkit / "lib64").mkdir(parents=True)
    (toolkit / "lib64" / "libnccl.so.2").touch()
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    nccl = LIBRARIES[1]
    assert nccl.where() == (str(toolkit / "lib64" / "libnccl.so.2"), "CUDA_HOME")
    monkeypatch.setenv("PACELINE_NCCL", "libmine.so")
    assert nccl.where() == ("libmine.so", "PACELINE_NCCL")


@pytest.mark.parametrize(
    ("driver", "built", "said"),
    [
        ("550.54", True, "the NVIDIA driver is too old: got 550.54, expected 580 or later"),
        ("580.159", False, "this build of paceline has no CUDA (docs/build.md)"),
        ("580.159", True, None),
    ],
)
def test_gpus_that_cannot_be_used_are_said_once(
    driver: str,
    built: bool,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from paceline import _gpus, cuda
    from paceline.engines import native

    monkeypatch.delenv("PACELINE_CUDA_LIBRARY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(_gpus, "installed", lambda: [_gpus.Gpu("NVIDIA H200", "GPU-1", "0")])
    monkeypatch.setattr(_gpus, "driver_version", lambda: driver)
    monkeypatch.setattr(_cuda_libraries, "_built", lambda: "/x/_cuda.so" if built else None)
    assert cuda.why_unused() == said
    assert not cuda.is_available()
    native._device_of.cache_clear()
    try:
        assert str(native.ENGINE.device(0, False)) == "cpu"
        assert str(native.ENGINE.device(0, False)) == "cpu"
    finally:
        native._device_of.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    expected = f"paceline: the GPUs of this machine are not used: {said}"
    assert lines == ([] if said is None else [expected])


def test_importing_and_asking_touch_no_driver() -> None:
    # Neither the driver nor a library of CUDA's is in the process afterwards.
    code = (
        "torch.cuda.is_available(); torch.cuda.device_count(); torch.cuda.manual_seed(0)\n"
        "maps = open('/proc/self/maps').read()\n"
        "loaded = [n for n in ('libcuda.so', 'libcublas', 'libnccl', '_cuda.so') if n in maps]\n"
        "assert not loaded, loaded\n"
        "raise SystemExit(1)"
    )
    env = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", "import paceline as torch\n" + code],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
