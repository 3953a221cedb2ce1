# SPDX-License-Identifier: Apache-2.0
"""Where CUDA's libraries are: found at the first use of a GPU, opened by the core.

The core looks first at a variable of its own and at what the process holds already
(``csrc/base/library.h``); what is found here comes next: NVIDIA's packages from PyPI, then the
toolkit that ``CUDA_HOME`` names; the system's own name comes last. Loads nothing heavy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from paceline import _C, _device
from paceline.errors import DeviceError

__all__ = ["LIBRARIES", "Library", "has_kernels", "kernels", "tell", "where_kernels"]

_KERNELS = "PACELINE_CUDA_LIBRARY"


@dataclass(frozen=True)
class Library:
    """A library of NVIDIA's: its variable, its file, and its place among the packages.

    Attributes
    ----------
    name : str
        As the core calls it.
    variable : str
        Names a file to use instead.
    file : str
        The name of the file.
    folder : str
        Where the package puts it, below the folder ``nvidia``.
    package : str
        The package on PyPI.
    extra : str
        The extra of paceline that brings it.
    """

    name: str
    variable: str
    file: str
    folder: str
    package: str
    extra: str = "cuda13"

    def find(self) -> str | None:
        """Give the file's path among the packages or in the toolkit, None if it is in neither."""
        places = [os.path.join(root, self.folder) for root in _packages()]
        for variable in ("CUDA_HOME", "CUDA_PATH"):
            home = os.environ.get(variable)
            if home:
                places += [os.path.join(home, "lib64"), os.path.join(home, "lib")]
        paths = (os.path.join(place, self.file) for place in places)
        return next((path for path in paths if os.path.isfile(path)), None)

    def where(self) -> tuple[str | None, str]:
        """Give the path or name that will be opened, None if there is none, and who says so."""
        named = os.environ.get(self.variable)
        if named:
            exists = os.sep not in named or os.path.isfile(named)
            return named, self.variable if exists else f"{self.variable}, THERE IS NO SUCH FILE"
        found = self.find()
        if found is not None:
            return found, self._package_version() if f"nvidia{os.sep}" in found else "CUDA_HOME"
        import ctypes

        try:
            ctypes.CDLL(self.file)  # opened, not used: the driver is not asked
        except OSError:
            return None, ""
        return self.file, "the system's"

    def _package_version(self) -> str:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            return self.package


LIBRARIES = (
    Library("CUBLASLT", "PACELINE_CUBLASLT", "libcublasLt.so.13", "cu13/lib", "nvidia-cublas"),
    Library("NCCL", "PACELINE_NCCL", "libnccl.so.2", "nccl/lib", "nvidia-nccl-cu13"),
    Library("CUDNN", "PACELINE_CUDNN", "libcudnn.so.9", "cudnn/lib", "nvidia-cudnn-cu13", "cudnn"),
    # cuDNN compiles its kernels by it when it makes a plan.
    Library("NVRTC", "PACELINE_NVRTC", "libnvrtc.so.13", "cu13/lib", "nvidia-cuda-nvrtc", "cudnn"),
)


def _packages() -> list[str]:
    """Give the folders of the namespace ``nvidia``; finding it runs nothing of it."""
    from importlib.util import find_spec

    spec = find_spec("nvidia")
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _built() -> str | None:
    path = os.path.join(os.path.dirname(_C.__file__ or ""), "_cuda.so")
    return path if os.path.isfile(path) else None


def where_kernels() -> str | None:
    """Give the path of the library of kernels, built with this package or named; None without."""
    return os.environ.get(_KERNELS) or _built()


def has_kernels() -> bool:
    """Tell whether there is a library of kernels."""
    return where_kernels() is not None


def kernels() -> str:
    """Give the path of the library of kernels, to who opens it now: then no fork can use CUDA.

    Raises
    ------
    DeviceError
        If this package was built without it.
    """
    found = where_kernels()
    if found is None:
        raise DeviceError(
            "[cuda] this build has no CUDA: got no _cuda.so beside paceline, expected one; "
            "install paceline where nvcc 13 is on PATH (docs/build.md)"
        )
    _device.will_be_used()
    return found


_told = False


def tell() -> None:
    """Tell the core, once, where the libraries are; it opens them when it needs them."""
    global _told
    if not _told:
        for library in LIBRARIES:
            _C.set_library_path(library.name, library.find())
        _told = True
