# SPDX-License-Identifier: Apache-2.0
"""``paceline env``: what a bug report needs.

Must work where the package does not: whatever cannot be found out is said so, never raised.
Loads neither torch nor NumPy, whose versions come from their metadata.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence

from .config_file import default_path, find
from .cores import available_cores

__all__ = ["main", "package_version"]

# Instruction sets that decide which loops are used.
_FLAGS = (
    "avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8"
).split()
_PACKAGES = ("numpy", "torch", "accelerate", "cloudpickle", "PyYAML", "safetensors")


def package_version() -> str:
    """Give the version of paceline."""
    from paceline._version import __version__

    return str(__version__)


def _distribution(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_fields() -> dict[str, str]:
    fields: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
            if not line.strip():
                break  # the first processor is enough
    return fields


def _processor() -> str:
    try:
        fields = _cpu_fields()
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def _instruction_sets() -> str:
    flags = set(_cpu_fields().get("flags", "").split())
    return " ".join(flag for flag in _FLAGS if flag in flags) or "none of those that matter"


def _cores() -> str:
    cores = available_cores()
    logical = sum(len(core) for core in cores)
    return f"{len(cores)} usable ({logical} logical processors), {os.cpu_count()} in the machine"


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
    from paceline import _C

    limit = _C.memory_stats()["limit"]
    return text if limit >= total else f"{text}; limit of this container {limit / 2**30:.1f} GiB"


def _core_library() -> str:
    from paceline import _C

    return str(_C.__file__)


def _onednn() -> str:
    import ctypes

    from paceline._native import find_dnnl

    class Version(ctypes.Structure):
        _fields_ = (
            ("major", ctypes.c_int),
            ("minor", ctypes.c_int),
            ("patch", ctypes.c_int),
        )

    path = find_dnnl()
    library = ctypes.CDLL(path)
    library.dnnl_version.restype = ctypes.POINTER(Version)
    found = library.dnnl_version().contents
    return f"{found.major}.{found.minor}.{found.patch} in {path}"


def _gpus() -> str:
    from paceline import _gpus

    there = _gpus.installed()
    if not there:
        return "none" if _gpus.driver_version() else "none (no NVIDIA driver)"
    shown = _gpus.visible(os.environ, there)
    hidden = "" if len(shown) == len(there) else f" ({len(shown)} by CUDA_VISIBLE_DEVICES)"
    return "; ".join(f"{gpu.name}, {gpu.uuid}" for gpu in there) + hidden


def _driver() -> str:
    from paceline import _gpus

    version = _gpus.driver_version()
    if version is None:
        return "none; CUDA 13 needs 580 or later"
    old = int(version.partition(".")[0]) < 580
    return f"{version}, too old: CUDA 13 needs 580 or later" if old else version


def _kernels() -> str:
    from paceline import _cuda_libraries

    return _cuda_libraries.where_kernels() or (
        "not built: install paceline where nvcc 13 is on PATH (docs/build.md)"
    )


def _library(name: str) -> str:
    """Say where one of CUDA's libraries is; nothing of it is run."""
    from paceline import _cuda_libraries

    library = next(each for each in _cuda_libraries.LIBRARIES if each.name == name)
    path, found_by = library.where()
    if path is None:
        optional = ", which is optional" if library.extra == "cudnn" else ""
        return f"missing{optional}: pip install 'paceline[{library.extra}]' brings it"
    return f"{path} ({found_by})"


def _torch_tensors() -> str:
    import subprocess
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return "PyTorch is not installed"
    asked = subprocess.run(
        [sys.executable, "-m", "paceline.engines.torch.report"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if asked.returncode != 0:
        raise RuntimeError((asked.stderr.strip().splitlines() or ["no reason was given"])[-1])
    return asked.stdout.strip()


def _said(ask: Callable[[], str]) -> str:
    """Give an answer, or why there is none."""
    try:
        return ask()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return f"unknown ({type(error).__name__}: {first})"


def _configuration(path: str) -> list[str]:
    from .config_file import ConfigFileError, load

    if not os.path.isfile(path):
        return [f"- Configuration file: none ({path} does not exist)"]
    lines = [f"- Configuration file: {path}"]
    try:
        load(path)
    except (ConfigFileError, ImportError) as error:
        lines.append(f"  NOT USABLE: {error}")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines += ["    " + line.rstrip() for line in file.read(1 << 16).splitlines()]
    except OSError as error:
        lines.append(f"  cannot be read: {error.strerror}")
    return lines


def _settings(config_file: str | None) -> list[str]:
    """List what a launch would use, and where each value comes from."""
    from .resolve import UsageError, explain

    try:
        rows = explain(config_file, os.environ)
    except UsageError as error:
        return [f"- Settings of a launch: NOT USABLE: {error}"]
    width = max(len(f"{name} = {value}") for name, value, _ in rows)
    lines = [f"    {f'{name} = {value}':<{width}}  ({source})" for name, value, source in rows]
    return ["- Settings of a launch, and where each comes from:", *lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline env --help``.

    Returns
    -------
    int
        0, or 2 for a wrong call.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    given = None
    if args and args[0] in ("-h", "--help"):
        print("usage: paceline env [--config_file FILE]\n\nPrint what a bug report needs.")
        return 0
    if len(args) == 2 and args[0] in ("--config_file", "--config-file"):
        given = args[1]
    elif args:
        print(f"paceline env: cannot use {' '.join(args)}: expected --config_file", file=sys.stderr)
        return 2
    print("Copy and paste this into a bug report.\n")
    asked: list[tuple[str, Callable[[], str]]] = [
        ("paceline", package_version),
        ("Core", _core_library),
        ("Python", lambda: f"{platform.python_version()} in {sys.executable}"),
        ("Platform", platform.platform),
        ("Processor", _processor),
        ("Instruction sets", _instruction_sets),
        ("Cores", _cores),
        ("Memory", _memory),
        ("GPUs", _gpus),
        ("NVIDIA driver", _driver),
        ("CUDA kernels", _kernels),
        ("cuBLASLt", lambda: _library("CUBLASLT")),
        ("NCCL", lambda: _library("NCCL")),
        ("cuDNN", lambda: _library("CUDNN")),
        ("PyTorch between ranks", _torch_tensors),
        ("oneDNN", _onednn),
        *((name, lambda name=name: _distribution(name)) for name in _PACKAGES),
    ]
    for name, ask in asked:
        print(f"- {name}: {_said(ask)}")
    for name in sorted(os.environ):
        if name.startswith(("PACELINE_", "ACCELERATE_", "OMP_", "CUDA_VISIBLE")):
            shown = "(not shown)" if "SECRET" in name or "TOKEN" in name else os.environ[name]
            print(f"- {name}={shown}")
    print("\n".join(_settings(given)))
    for path in find(given) or [default_path()]:
        print("\n".join(_configuration(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
