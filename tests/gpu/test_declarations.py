# SPDX-License-Identifier: Apache-2.0
"""Our declarations of cuBLASLt, NCCL and cuDNN against NVIDIA's headers and libraries.

Where NVIDIA's packages are installed (``pip install 'paceline[cuda13]'``, or a folder that has
them unpacked on ``PYTHONPATH``); no GPU is needed. Headers of CUDA's run time, which those headers
include, come from the toolkit or its package.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import cbuild
from paceline import _cuda_libraries

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "tests" / "c" / "real"
PLACES = ("cu13/include", "nccl/include", "cudnn/include")


def packages() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]


def folders() -> list[Path]:
    """Where NVIDIA's headers may lie, those of the packages first."""
    found = [root / name for root in packages() for name in PLACES]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [*found, *(Path(home) / "include" for home in homes if home)]


@pytest.mark.parametrize(
    ("library", "header"),
    [("cublaslt", "cublasLt.h"), ("nccl", "nccl.h"), ("cudnn", "cudnn_graph.h")],
)
def test_we_declare_what_nvidia_declares(library: str, header: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    for needed in (header, "cuda_runtime_api.h"):
        if not any((folder / needed).is_file() for folder in folders()):
            pytest.skip(f"no {needed} among NVIDIA's packages or in CUDA's toolkit")
    # Once as it is, then with a value of ours changed, which must be seen.
    source = (REAL / f"{library}_declared.cc").read_text()
    wrong = {"cublaslt": "SAME_VALUE(PL_LT_32F, CUBLAS_COMPUTE_64F);\n",
             "nccl": "SAME_VALUE(PL__NCCL_SUM, ncclProd);\n",
             "cudnn": "SAME_VALUE(PL_DNN_HALF, CUDNN_DATA_BFLOAT16);\n"}  # fmt: skip
    flags = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels'}", f"-I{REAL}"]
    flags += [flag for folder in folders() for flag in ("-isystem", str(folder))]
    for text, right in ((source, True), (source + wrong[library], False)):
        done = subprocess.run(
            [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", *flags, "-xc++", "-"],
            input=text, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) == right, done.stderr[-4000:]
        assert right or " is not " in done.stderr


@pytest.mark.timeout(900)  # the first one builds
@pytest.mark.parametrize("name", ["cublaslt", "nccl", "cudnn"])
def test_what_the_library_does_without_a_gpu(name: str) -> None:
    library = next(x for x in _cuda_libraries.LIBRARIES if x.name == name.upper())
    path = library.find()
    if path is None:
        pytest.skip(f"no {library.file}: pip install {library.package}")
    nvrtc = next(x for x in _cuda_libraries.LIBRARIES if x.name == "NVRTC")
    if name == "cudnn" and nvrtc.find() is None:
        pytest.skip(f"no {nvrtc.file}, by which cuDNN compiles: pip install {nvrtc.package}")
    problem = cbuild.build("real_libraries") if cbuild.has_cxx() else "no C++ compiler"
    if problem == "no C++ compiler":
        pytest.skip(problem)
    assert not problem, problem
    binary = cbuild.FOLDER / "real_libraries"
    tests = subprocess.run([binary, "-l"], capture_output=True, text=True).stdout.split()
    tests = [test for test in tests if test.startswith(name)]
    assert tests
    env = {**os.environ, library.variable: path, nvrtc.variable: nvrtc.find() or ""}
    done = subprocess.run([binary, *tests], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed, 0 failed" in done.stdout + done.stderr
