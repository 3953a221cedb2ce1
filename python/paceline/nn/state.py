# SPDX-License-Identifier: Apache-2.0
"""state_dict and load_state_dict of a module, with PyTorch's keys and messages."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paceline import _C

if TYPE_CHECKING:
    from paceline.nn.module import Module


class IncompatibleKeys(namedtuple("IncompatibleKeys", ("missing_keys", "unexpected_keys"))):
    """What `load_state_dict` did not find, and what it found too much."""

    __slots__ = ()
    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class _Loading:
    # What one load_state_dict collects on its way through the tree.
    def __init__(self, state: Mapping[str, Any], assign: bool) -> None:
        self.state = state
        self.assign = assign
        self.missing: list[str] = []
        self.known: set[str] = set()
        self.errors: list[str] = []


class StateMethods:
    """Saving and loading, for `Module`."""

    def state_dict(
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Names to parameters and persistent buffers, over the same memory.

        Parameters
        ----------
        destination : dict, optional
            Where to put them.
        prefix : str
            What the names begin with.
        keep_vars : bool
            Give the parameters themselves instead of detached tensors.
        """
        module: Module = self  # type: ignore[assignment]
        out: dict[str, Any] = {} if destination is None else destination
        for name, p in module._parameters.items():
            if p is not None:
                out[prefix + name] = p if keep_vars else _C.detach(p)
        for name, b in module._buffers.items():
            if b is not None and name not in module._transient:
                out[prefix + name] = b if keep_vars else _C.detach(b)
        extra = getattr(type(self), "get_extra_state", None)
        if extra is not None:
            out[prefix + "_extra_state"] = extra(self)
        for name, child in module._modules.items():
            if child is not None:
                child.state_dict(destination=out, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        return out

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copy values into the parameters and buffers.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            What `state_dict` gave.
        strict : bool
            Whether missing and unexpected names are an error.
        assign : bool
            Take over the tensors' memory, dtype and device instead of copying.

        Returns
        -------
        IncompatibleKeys
            ``missing_keys`` and ``unexpected_keys``.

        Raises
        ------
        RuntimeError
            If names (where `strict`) or shapes do not fit; it lists all of them. Nothing says
            that what did fit was not copied.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"Expected state_dict to be dict-like, got {type(state_dict).__name__}."
            )
        module: Module = self  # type: ignore[assignment]
        loading = _Loading(state_dict, assign)
        _load_into(module, loading, "")
        unexpected = [key for key in state_dict if key not in loading.known]
        errors = loading.errors
        if strict:
            if unexpected:
                listed = ", ".join(f'"{key}"' for key in unexpected)
                errors.insert(0, f"Unexpected key(s) in state_dict: {listed}. ")
            if loading.missing:
                listed = ", ".join(f'"{key}"' for key in loading.missing)
                errors.insert(0, f"Missing key(s) in state_dict: {listed}. ")
        if errors:
            raise RuntimeError(
                "Error(s) in loading state_dict for {}:\n\t{}".format(
                    type(self).__name__, "\n\t".join(errors)
                )
            )
        return IncompatibleKeys(loading.missing, unexpected)


def _load_into(module: Module, loading: _Loading, prefix: str) -> None:
    values: list[tuple[str, Any]] = [*module._parameters.items(), *module._buffers.items()]
    for name, target in values:
        if target is None or name in module._transient:
            continue
        key = prefix + name
        loading.known.add(key)
        if key not in loading.state:
            loading.missing.append(key)
            continue
        problem = _take(target, key, loading)
        if problem:
            loading.errors.append(problem)
    restore = getattr(type(module), "set_extra_state", None)
    key = prefix + "_extra_state"
    if restore is not None:
        loading.known.add(key)
        if key in loading.state:
            restore(module, loading.state[key])
        else:
            loading.missing.append(key)
    for name, child in module._modules.items():
        if child is not None:
            _load_into(child, loading, f"{prefix}{name}.")


def _take(target: Any, key: str, loading: _Loading) -> str:
    # Copies one value into target; gives a complaint, or "".
    value = loading.state[key]
    if not isinstance(value, _C.Tensor):
        if not hasattr(value, "__array__"):
            return (
                f'While copying the parameter named "{key}", expected paceline.Tensor or '
                f"Tensor-like object from checkpoint but received {type(value).__name__}"
            )
        from paceline._factories import as_tensor

        value = as_tensor(value)
    if tuple(value.shape) != tuple(target.shape):
        return (
            f"size mismatch for {key}: copying a param with shape {tuple(value.shape)} from "
            f"checkpoint, the shape in current model is {tuple(target.shape)}."
        )
    if loading.assign:
        target._set_data(_C.detach(value))
        return ""
    before = _C.set_grad_enabled(False)
    try:
        _C.copy_(target, _C.detach(value))
    finally:
        _C.set_grad_enabled(before)
    return ""
