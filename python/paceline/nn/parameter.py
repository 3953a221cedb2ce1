# SPDX-License-Identifier: Apache-2.0
"""Parameter: a tensor that a module trains."""

from __future__ import annotations

from typing import Any

from paceline import _C
from paceline._tensor import Tensor


class Parameter(Tensor):
    """A tensor that is listed by the module it is assigned to.

    Parameters
    ----------
    data : Tensor
        Its values; the memory is shared.
    requires_grad : bool
        Whether it is trained.
    """

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Any:
        if data is None:
            data = _C.empty((0,), 6)
        if not isinstance(data, _C.Tensor):
            raise TypeError(f"[Parameter] data: got {type(data).__name__}, expected a Tensor")
        return _C.alias(cls, _C.detach(data), requires_grad)

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        pass

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()

    def _rewrap(self, values: Tensor) -> Tensor:
        return type(self)(values, self.requires_grad)


class Buffer:
    """Marks a tensor that a module keeps but does not train, where it is assigned.

    Parameters
    ----------
    data : Tensor
        Its values.
    persistent : bool
        Whether it is part of the module's ``state_dict``.
    """

    def __init__(self, data: Tensor, *, persistent: bool = True) -> None:
        self.data = data
        self.persistent = persistent
