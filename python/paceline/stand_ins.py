# SPDX-License-Identifier: Apache-2.0
"""What an installed library finds in paceline under a name of Accelerate's that is not there.

transformers' ``Trainer`` imports, at its top, names for FSDP, DeepSpeed and others that most runs
never use. A library gets a class for each, which says why it is not there when it is used; a
program's own imports fail at once (``compat``). Knows no tensor library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .accelerator import Accelerator

__all__ = ["StandIns", "TorchDynamoPlugin"]


class StandIns(ModuleType):
    """A module of paceline's as a library sees it: with a stand-in for each missing name.

    Parameters
    ----------
    name : str
        What the library calls it, such as ``accelerate.utils``.
    places : sequence of module
        Where in paceline its names are looked for; the first is its counterpart, if there is one.
    explain : callable
        Gives the reason for a missing name.
    """

    def __init__(
        self, name: str, places: Sequence[ModuleType], explain: Callable[[str], str]
    ) -> None:
        super().__init__(name.replace("accelerate", "paceline", 1))
        self.__path__: list[str] = []
        self._places = places
        self._explain = explain

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "TorchDynamoPlugin":
            return TorchDynamoPlugin
        if name == "Accelerator":
            return _accelerator()
        reason = ""
        for place in self._places:
            try:
                return getattr(place, name)
            except AttributeError:
                continue
            except ImportError as error:  # of a name that is known not to be here
                reason = reason or str(error)
        return _stand_in(name, reason or self._explain(name))


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


@cache
def _accelerator() -> type[Accelerator]:
    from .accelerator import Accelerator
    from .engines import engine_of_tensor
    from .utils.operations import recursively_apply

    class LibraryAccelerator(Accelerator):
        """An Accelerator whose metrics have one row per sample, as libraries take for granted.

        ``Trainer`` repeats the loss of a batch as often as a full batch has samples, also for the
        last one, which may be shorter: what is too much is cut off, as Accelerate does.
        """

        def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
            loader = self.gradient_state.active_dataloader
            rows = -1 if loader is None or not loader.end_of_dataloader else loader.remainder
            if self.use_distributed or rows <= 0:  # several tell one another
                return super().gather_for_metrics(input_data, use_gather_object)

            def cut(tensor: Any) -> Any:
                engine = engine_of_tensor(tensor)
                return engine.slice(tensor, 0, rows) if engine.shape(tensor) else tensor

            data = recursively_apply(cut, input_data)
            return super().gather_for_metrics(data, use_gather_object)

    LibraryAccelerator.__module__ = Accelerator.__module__
    return LibraryAccelerator


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
