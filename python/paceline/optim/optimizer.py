# SPDX-License-Identifier: Apache-2.0
"""Optimizer: parameter groups, state, and their saving in PyTorch's format.

A subclass says how one group is updated; the update itself is one call into C per group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paceline import _C
from paceline._handed_over import HandedOver
from paceline._tensor import Tensor
from paceline.dtypes import ALL

Params = Iterable[Any]
# Parameters of one call, and whether their gradients were finite, or numbers on a GPU that say so.
Seen = tuple[list[Any], "bool | Tensor"]


class Optimizer:
    """Base of all optimizers.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
        What is trained; a dictionary is a group with settings of its own under its other keys.
    defaults : dict
        Settings of groups that do not name them.

    Attributes
    ----------
    param_groups : list of dict
        ``"params"`` and the settings of each group; they may be changed at any time.
    state : dict
        What the optimizer keeps per parameter.
    grad_scale : float
        The next `step` multiplies every gradient by this first and puts it back to 1. (Clipping
        and unscaling leave their factor with the gradients themselves.)
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        self.grad_scale = 1.0
        self._seen: list[Seen] | None = None
        if isinstance(params, _C.Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                f"dicts, but got {type(params).__name__}"
            )
        given = list(params)
        if not given:
            raise ValueError("optimizer got an empty parameter list")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a dictionary with ``"params"`` and settings that differ from the defaults.

        Raises
        ------
        TypeError
            If something in it is not a tensor.
        ValueError
            If a tensor is no leaf, or in a group already.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        group = dict(param_group)
        members = group["params"]
        members = [members] if isinstance(members, _C.Tensor) else list(members)
        if members and isinstance(members[0], tuple):  # from named_parameters()
            group["param_names"] = [name for name, _ in members]
            members = [p for _, p in members]
        taken = {id(p) for g in self.param_groups for p in g["params"]}
        for p in members:
            if not isinstance(p, _C.Tensor):
                raise TypeError(f"optimizer can only optimize Tensors, but got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError("can't optimize a non-leaf Tensor")
            if id(p) in taken:
                raise ValueError("some parameters appear in more than one parameter group")
            taken.add(id(p))
        group["params"] = members
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        self._check_group(group)
        self.param_groups.append(group)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse settings that make no sense."""

    def _update(self, group: dict[str, Any], params: list[Any], scale: float) -> list[Seen] | None:
        """Update those parameters of a group that have a gradient; every subclass defines it.

        Gives the parameters of each call with what it saw of their gradients, as `_C.adam_step`
        tells it; None where it did not look.
        """
        raise NotImplementedError

    @property
    def grads_were_finite(self) -> bool | None:
        """Whether the last `step` met no NaN and no Inf in a gradient; None: it did not look.

        Of parameters on a GPU it waits for the step.
        """
        if self._seen is None:
            return None
        known = [
            (params, told if isinstance(told, bool) else not _C.any(told, None, False).item())
            for params, told in self._seen
        ]
        self._seen = [*known]
        return all(finite for _, finite in known)

    @property
    def _unread(self) -> list[tuple[list[Any], Tensor]]:
        """Of the last `step`: parameters on a GPU, and numbers there, not 0 of a bad gradient."""
        return [(ps, t) for ps, t in self._seen or () if isinstance(t, _C.Tensor)]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters from their gradients.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients again; its result is given back.
        """
        loss = None
        if closure is not None:
            before = _C.set_grad_enabled(True)
            try:
                loss = closure()
            finally:
                _C.set_grad_enabled(before)
        scale, self.grad_scale = self.grad_scale, 1.0
        told: list[Seen] | None = []
        for group in self.param_groups:
            with_grad = _C.with_grad(group["params"])
            if with_grad:
                seen = self._update(group, with_grad, scale)
                told = None if seen is None or told is None else [*told, *seen]
        self._seen = told
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        self.grad_scale = 1.0
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.zero_()

    # -- saving -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and settings; parameters are numbered in the order of the groups."""
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            packed = {name: value for name, value in group.items() if name != "params"}
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
            packed["params"] = [numbers[id(p)] for p in group["params"]]
            groups.append(packed)
        state = {numbers[id(p)]: self._packed(s) for p, s in self.state.items()}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _packed(self, state: dict[str, Any]) -> dict[str, Any]:
        # PyTorch keeps the number of steps as a tensor.
        out = dict(state)
        if "step" in out:
            out["step"] = _C.full((), float(out["step"]), 6)
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the tensors are copied, but for a `HandedOver`.

        Raises
        ------
        ValueError
            If groups or their sizes differ.
        """
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        sizes = zip(self.param_groups, groups, strict=True)
        if any(len(own["params"]) != len(new["params"]) for own, new in sizes):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )
        by_number: dict[Any, Tensor] = {}
        for own, new in zip(self.param_groups, groups, strict=True):
            by_number.update(zip(new["params"], own["params"], strict=True))
        state: dict[Tensor, dict[str, Any]] = {}
        # Of a checkpoint's tensors each is kept once; a second user of one gets a copy.
        kept_ids: set[int] | None = set() if isinstance(state_dict, HandedOver) else None
        for number, values in state_dict["state"].items():
            p = by_number.get(number)
            if p is not None:
                state[p] = {name: _adopted(p, name, v, kept_ids) for name, v in values.items()}
        for own, new in zip(self.param_groups, groups, strict=True):
            kept = {"params": own["params"]}
            kept.update({k: copy.deepcopy(v) for k, v in new.items() if k != "params"})
            own.clear()
            own.update(kept)
        self.state = state

    def __repr__(self) -> str:
        lines = [type(self).__name__ + " ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def _adopted(p: Tensor, name: str, value: Any, kept: set[int] | None) -> Any:
    # One entry of a loaded state as this optimizer keeps it. kept: ids of the tensors that it has
    # kept as they are; None where all are copied.
    if name == "step":
        return int(value.item()) if hasattr(value, "item") else int(value)
    if hasattr(value, "__array__") and not isinstance(value, _C.Tensor):
        from paceline._factories import tensor

        value = tensor(value)
    if not isinstance(value, _C.Tensor):
        return copy.deepcopy(value)
    known = id(value)
    if ALL[value._dtype].is_floating_point:
        value = _C.to_dtype(value, p._dtype)
    placed = _C.to_device(_C.detach(value), p._device_index, False)
    if kept is None or known in kept:
        return _C.clone(placed)
    kept.add(known)
    return placed


def follow(params: Sequence[Any], state: dict[Tensor, dict[str, Any]]) -> None:
    """Bring the state of parameters that were moved to another device after them."""
    for p in params:
        held = state.get(p, {})
        for name, value in held.items():
            if isinstance(value, _C.Tensor):
                held[name] = _C.to_device(value, p._device_index, False)


def in_memory_order(params: list[Any]) -> list[Any]:
    """Parameters by address: neighbours in memory are updated by one call."""
    return sorted(params, key=lambda p: p._data_ptr)


_ALIGN = 16  # elements: 64 bytes of float32, one cache line


def zeros_beside(params: Sequence[Any], count: int) -> list[list[Tensor]]:
    """For each parameter `count` zeros of its shape, laid out as the parameters are in memory.

    Parameters that follow each other without a gap get state that does so too; others begin on a
    cache line of their own.
    """
    made: dict[int, list[Tensor]] = {id(p): [] for p in params}
    for code, at in sorted({(p._dtype, p._device_index) for p in params}):
        members = [p for p in params if (p._dtype, p._device_index) == (code, at)]
        starts, total, end = [], 0, -1
        for p in members:
            if p._data_ptr != end:
                total = -(-total // _ALIGN) * _ALIGN
            starts.append(total)
            total += p._numel()
            end = p._data_ptr + p._numel() * ALL[code].itemsize
        for _ in range(count):
            flat = _C.full((total,), 0, code, at)
            for p, start in zip(members, starts, strict=True):
                part = _C.slice(flat, 0, start, start + p._numel(), 1)
                made[id(p)].append(_C.view(part, p.shape))
    return [made[id(p)] for p in params]


def refuse(optimizer: str, **flags: Any) -> None:
    """Refuse what PyTorch has and this package has not, where it is asked for."""
    for name, value in flags.items():
        if value:
            raise NotImplementedError(f"[{optimizer}] {name} is not built: got {value!r}")
