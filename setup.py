# SPDX-License-Identifier: Apache-2.0
"""Delegates the build of paceline._C to CMake and Ninja; everything else is in pyproject.toml."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# A free-threaded interpreter cannot load stable-ABI modules before Python 3.15 (PEP 803).
ABI3 = os.environ.get("PACELINE_ABI3", "1") != "0" and not sysconfig.get_config_var(
    "Py_GIL_DISABLED"
)


def unsupported() -> str | None:
    """Say in one sentence what works on this system instead, or None where paceline builds."""
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and machine in ("x86_64", "AMD64"):
        return None
    instead = {
        "Windows": "on Windows it works inside WSL2",
        "Darwin": "on macOS it works in a linux/amd64 container",
    }.get(system, f"{system} {machine} is not supported yet, a linux/amd64 container works")
    return f"paceline builds and runs on Linux x86-64 only so far: {instead}."


def tool(name: str) -> str:
    """Find a build tool beside this interpreter (a venv that is not activated) or on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"paceline: {name} is missing: `pip install {name}` brings it")
    return found


class CMakeBuild(build_ext):
    """Build the one extension with CMake; the folder of objects is kept between builds."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and install the module into the place setuptools expects."""
        reason = unsupported()
        if reason:
            raise SystemExit(reason)
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        objects = Path(self.build_temp).resolve() / ("abi3" if ABI3 else "full-api")
        cmake = tool("cmake")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(objects), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPACELINE_ABI3={int(ABI3)}",
        ]  # fmt: skip
        # A kept folder remembers its switches; what the environment says now must win.
        configure += [
            f"-D{name}={value}"
            for name, value in os.environ.items()
            if name.startswith("PACELINE_")
            and name.removeprefix("PACELINE_")
            in ("ONEDNN", "CUDA", "CUDA_ARCHS", "SANITIZE", "DEBUG", "WERROR")
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(objects)], check=True)
        strip = [] if os.environ.get("PACELINE_DEBUG", "0") != "0" else ["--strip"]
        subprocess.run(
            [cmake, "--install", str(objects), "--prefix", str(target), *strip], check=True
        )


class CleanBuildPy(build_py):
    """Copy the Python files into an empty folder: a kept one would ship deleted modules."""

    def run(self) -> None:
        """Remove what an earlier build left, then copy."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "paceline", ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("paceline._C", sources=[], py_limited_api=ABI3)],
    cmdclass={"build_ext": CMakeBuild, "build_py": CleanBuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
