# SPDX-License-Identifier: Apache-2.0
"""What an installed library finds in paceline under a name of Accelerate's that is not there.

transformers' ``Trainer`` imports, at its top, names for FSDP, DeepSpeed and others that most runs
never use. A library gets a class for each, which says why it is not there when it is used; a
program's own imports fail at once (``compat``). Knows no tensor library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["StandIns", "TorchDynamoPlugin"]


class StandIns(ModuleType):
    """A module of paceline's as a library sees it: with a stand-in for each missing name.

    Parameters
    ----------
    name : str
        What the library calls it, such as ``accelerate.utils``.
    real : module, optional
        The module of paceline; None where there is none of that name.
    explain : callable
        Gives the reason for a missing name.
    """

    def __init__(self, name: str, real: ModuleType | None, explain: Callable[[str], str]) -> None:
        super().__init__(name if real is None else real.__name__)
        self.__path__: list[str] = []
        self._real = real
        self._explain = explain

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "TorchDynamoPlugin":
            return TorchDynamoPlugin
        try:
            return getattr(self._real, name)
        except (AttributeError, ImportError) as error:
            reason = str(error) if isinstance(error, ImportError) else self._explain(name)
        return _stand_in(name, reason)


class _Absent(type):
    """Type of stand-ins: whatever is asked of one says why it is not there."""

    _reason: str

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(cls._reason)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(cls._reason)


@cache
def _stand_in(name: str, reason: str) -> type:
    return _Absent(name, (), {"_reason": reason, "__module__": __name__})


class TorchDynamoPlugin:
    """What ``Trainer`` always passes to ``Accelerator``: whether to compile; here it must not.

    Parameters
    ----------
    backend : str, optional
        None or "no".
    **options : object
        Without effect, as nothing is compiled.

    Raises
    ------
    NotImplementedError
        For another backend.
    """

    def __init__(self, backend: Any = None, **options: Any) -> None:
        if backend is not None and str(backend).lower() != "no":
            raise NotImplementedError(
                f"[TorchDynamoPlugin] backend: got {backend!r}, expected None: use "
                "torch.compile(model) before prepare"
            )
        self.backend = "no"
