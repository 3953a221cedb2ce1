# SPDX-License-Identifier: Apache-2.0
"""Modules that hold modules: Sequential, ModuleList, ModuleDict, ParameterList."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paceline import _C
from paceline._tensor import Tensor
from paceline.nn.activations import GELU, ReLU
from paceline.nn.layers import Linear
from paceline.nn.module import Module
from paceline.nn.parameter import Parameter


def _wrap(index: int, size: int) -> int:
    at = index.__index__()
    if not -size <= at < size:
        raise IndexError(f"index {at} is out of range")
    return at + size if at < 0 else at


def _is_plain(module: Module) -> bool:
    # Calling it does what its class says: no hooks, and no forward of the instance's own.
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and "forward" not in module.__dict__


def _fused(module: Module) -> int:
    """Code of the activation that `module` is, if `linear` can compute it in its own pass."""
    kind = type(module)
    if kind is ReLU:
        code = 0 if module.inplace else 1
    elif kind is GELU:
        code = {"none": 2, "tanh": 3}.get(module.approximate, 0)
    else:
        return 0
    return code if _is_plain(module) else 0


class _Ordered(Module):
    """Children under the names "0", "1", ..."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __getitem__(self, index: int | slice) -> Any:
        children = list(self._modules.values())
        if isinstance(index, slice):
            part = type(self)()
            for i, child in enumerate(children[index]):
                part.register_module(str(i), child)
            return part
        return children[_wrap(index, len(children))]

    def __setitem__(self, index: int, module: Module) -> None:
        name = list(self._modules)[_wrap(index, len(self))]
        self.register_module(name, module)

    def __delitem__(self, index: int | slice) -> None:
        children = list(self._modules.values())
        if isinstance(index, slice):
            del children[index]
        else:
            del children[_wrap(index, len(children))]
        self._modules.clear()
        for i, child in enumerate(children):
            self._modules[str(i)] = child

    def append(self, module: Module) -> Any:
        """Add a module at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before the one at `index`."""
        children = list(self._modules.values())
        children.insert(index, module)
        self._modules.clear()
        for i, child in enumerate(children):
            self.register_module(str(i), child)
        return self


class Sequential(_Ordered):
    """Calls its modules one after the other.

    A `Linear` that is followed by `ReLU` or `GELU`, neither with hooks, is computed with it in one
    pass over memory; the result is the same.

    Parameters
    ----------
    *args : Module or dict of str to Module
        The modules, or one ordered dictionary with their names.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self.register_module(name, module)
        else:
            for i, module in enumerate(args):
                self.register_module(str(i), module)

    def forward(self, input: Any) -> Any:
        modules: list[Any] = list(self._modules.values())
        at, count = 0, len(modules)
        while at < count:
            module = modules[at]
            at += 1
            if type(module) is Linear and at < count:
                code = _fused(modules[at])
                if code and _is_plain(module):
                    input = _C.linear(input, module.weight, module.bias, code)
                    at += 1
                    continue
            input = module(input)
        return input


class ModuleList(_Ordered):
    """A list of modules; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])


class ModuleDict(Module):
    """A dictionary of modules; it has no forward of its own."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Module:
        return self._modules[key]  # type: ignore[return-value]

    def __setitem__(self, key: str, module: Module) -> None:
        self.register_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self._modules.values()  # type: ignore[return-value]

    def items(self) -> Iterable[tuple[str, Module]]:
        """Names and modules."""
        return self._modules.items()  # type: ignore[return-value]

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add modules, or put them in the place of those of the same name."""
        for name, module in modules.items():
            self.register_module(name, module)


class ParameterList(Module):
    """A list of parameters; tensors become parameters."""

    def __init__(self, values: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        for value in values or ():
            self.append(value)

    def append(self, value: Tensor) -> ParameterList:
        """Add a parameter at the end."""
        held = value if isinstance(value, Parameter) else Parameter(value)
        self.register_parameter(str(len(self)), held)
        return self

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._parameters.values())  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Parameter:
        return list(self._parameters.values())[_wrap(index, len(self))]  # type: ignore[return-value]
