# SPDX-License-Identifier: Apache-2.0
"""Module: a tree of parameters, buffers and modules, with a forward function.

Names, order of traversal, hooks and messages are PyTorch's. Saving and loading of state is in
``state.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from paceline import _C
from paceline._placing import parse_to
from paceline._tensor import Tensor
from paceline.dtypes import ALL
from paceline.nn.parameter import Buffer, Parameter
from paceline.nn.state import StateMethods

if TYPE_CHECKING:
    from paceline.dtypes import dtype

M = TypeVar("M", bound="Module")


class RemovableHandle:
    """Takes a hook away again: by `remove`, or at the end of a ``with`` block."""

    _next = 0

    def __init__(self, hooks: dict[int, Any]) -> None:
        self._hooks = hooks
        self.id = RemovableHandle._next
        RemovableHandle._next += 1

    def remove(self) -> None:
        """Take the hook away."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Module(StateMethods):
    """Base of all layers and models: define ``__init__`` and ``forward``.

    Attributes
    ----------
    training : bool
        Whether layers such as `Dropout` act as in training.
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _transient: set[str]
    _forward_hooks: dict[int, tuple[Callable[..., Any], bool]]
    _forward_pre_hooks: dict[int, tuple[Callable[..., Any], bool]]

    def __init__(self) -> None:
        put = super().__setattr__
        put("training", True)
        put("_parameters", {})
        put("_buffers", {})
        put("_modules", {})
        put("_transient", set())  # names of buffers that state_dict leaves out
        put("_forward_hooks", {})
        put("_forward_pre_hooks", {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module computes; every subclass defines its own."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._forward_hooks and not self._forward_pre_hooks:
            return self.forward(*args, **kwargs)
        return self._call_with_hooks(args, kwargs)

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook, with_kwargs in tuple(self._forward_pre_hooks.values()):
            changed = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if changed is None:
                continue
            if with_kwargs:
                args, kwargs = changed
            else:
                args = changed if isinstance(changed, tuple) else (changed,)
        out = self.forward(*args, **kwargs)
        for hook, with_kwargs in tuple(self._forward_hooks.values()):
            changed = hook(self, args, kwargs, out) if with_kwargs else hook(self, args, out)
            if changed is not None:
                out = changed
        return out

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Have ``hook(module, args)`` called before every forward; it may give other arguments."""
        return _add_hook(self._forward_pre_hooks, hook, prepend, with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Have ``hook(module, args, output)`` called after every forward; it may replace output."""
        return _add_hook(self._forward_hooks, hook, prepend, with_kwargs)

    # -- attributes ---------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Called only where ordinary lookup has found nothing.
        slots = self.__dict__
        for table in ("_parameters", "_buffers", "_modules"):
            held = slots.get(table)
            if held is not None and name in held:
                return held[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.register_module(name, value)
        elif isinstance(value, Buffer):
            self.register_buffer(name, value.data, persistent=value.persistent)
        elif not self._assign_known(name, value):
            super().__setattr__(name, value)

    def _assign_known(self, name: str, value: Any) -> bool:
        # A name that stands for a parameter, module or buffer keeps standing for one.
        slots = self.__dict__
        if name in slots.get("_parameters", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign {type(value).__name__!r} as parameter {name!r} "
                    "(paceline.nn.Parameter or None expected)"
                )
            slots["_parameters"][name] = None
        elif name in slots.get("_modules", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign {type(value).__name__!r} as child module {name!r} "
                    "(paceline.nn.Module or None expected)"
                )
            slots["_modules"][name] = None
        elif name in slots.get("_buffers", ()):
            if value is not None and not isinstance(value, _C.Tensor):
                raise TypeError(
                    f"cannot assign {type(value).__name__!r} object to buffer {name!r} "
                    "(paceline.Tensor or None required)"
                )
            slots["_buffers"][name] = value
        else:
            return False
        return True

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                self._transient.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def _claim(self, kind: str, name: str) -> None:
        # Makes `name` free for a table, with PyTorch's complaints.
        slots = self.__dict__
        if "_parameters" not in slots:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {type(name).__name__}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(type(self), name):
            # The table would never be asked: methods and properties are found first.
            raise KeyError(f"attribute '{name}' already exists")
        slots.pop(name, None)
        for table in ("_parameters", "_buffers", "_modules"):
            if table != "_" + kind + "s":
                slots[table].pop(name, None)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter; None keeps the name without a value."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign {type(param).__name__!r} object to parameter {name!r} "
                "(paceline.nn.Parameter or None required)"
            )
        self._claim("parameter", name)
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is kept but not trained.

        Parameters
        ----------
        name : str
            Attribute under which it is found.
        tensor : Tensor or None
            Its values.
        persistent : bool
            Whether ``state_dict`` has it.
        """
        if tensor is not None and not isinstance(tensor, _C.Tensor):
            raise TypeError(
                f"cannot assign {type(tensor).__name__!r} object to buffer {name!r} "
                "(paceline.Tensor or None required)"
            )
        self._claim("buffer", name)
        self._buffers[name] = tensor
        if persistent:
            self._transient.discard(name)
        else:
            self._transient.add(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a child."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{type(module).__name__} is not a Module subclass")
        self._claim("module", name)
        self._modules[name] = module

    add_module = register_module

    # -- traversal ----------------------------------------------------------------------------

    def named_modules(
        self, memo: set[int] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Self and all modules below, parents first, each once."""
        seen = set() if memo is None else memo
        if remove_duplicate:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                below = f"{prefix}.{name}" if prefix else name
                yield from child.named_modules(seen, below, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Self and all modules below."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, each once."""
        seen: set[int] = set()
        for name, child in self._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """The modules directly below."""
        for _, child in self.named_children():
            yield child

    def _named(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else iter([(prefix, self)])
        )
        for where, module in modules:
            for name, value in getattr(module, table).items():
                if value is None or id(value) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(value))
                yield (f"{where}.{name}" if where else name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Names and parameters; one that is used in two places comes once."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters; one that is used in two places comes once."""
        seen: set[int] = set()
        for module in self.modules() if recurse else (self,):
            for value in module._parameters.values():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    yield value

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers."""
        for _, value in self._named("_buffers", "", recurse, True):
            yield value

    def _descend(self, op: str, target: str) -> Module:
        module: Module = self
        for name in target.split(".") if target else ():
            child = module._modules.get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__} has no {op} `{name}`")
            module = child
        return module

    def get_submodule(self, target: str) -> Module:
        """The module of that dotted name."""
        return self._descend("attribute", target)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter of that dotted name."""
        path, _, name = target.rpartition(".")
        module = self._descend("attribute", path)
        value = module._parameters.get(name)
        if value is None:
            raise AttributeError(f"{type(module).__name__} has no parameter `{name}`")
        return value

    # -- changes to all -----------------------------------------------------------------------

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call `fn` on every module below, then on self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self: M, mode: bool = True) -> M:
        """Set `training` here and below."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self: M) -> M:
        """As ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set whether the parameters are trained."""
        for p in self.parameters():
            p.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        for p in self.parameters():
            if p.grad is not None:
                if set_to_none:
                    p.grad = None
                else:
                    p.grad.zero_()

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """Move to a device, or to a floating-point dtype; in place.

        Parameters keep their identity, so that an optimizer that holds them stays right.
        """
        wanted = parse_to(args, dict(kwargs))
        if wanted.code >= 0:
            self._cast(wanted.code)
        return self if wanted.index is None else self._place(wanted.index, wanted.non_blocking)

    def _cast(self: M, code: int) -> M:
        if not ALL[code].is_floating_point:
            raise TypeError(
                "[Module.to] only accepts floating-point dtypes: "
                f"got {ALL[code]!r}, expected the like of paceline.float32"
            )

        def cast(t: Tensor) -> Tensor:
            return _C.to_dtype(t, code) if t.is_floating_point() else t

        return self._change(cast)

    def _place(self: M, index: int, non_blocking: bool = False) -> M:
        return self._change(lambda t: _C.to_device(t, index, non_blocking))

    def _change(self: M, change: Callable[[Tensor], Tensor]) -> M:
        # Gives parameters, their gradients and buffers other values; what stays itself is left.
        for module in self.modules():
            for p in module._parameters.values():
                if p is None:
                    continue
                old = _C.detach(p)
                new = change(old)
                if new is not old:
                    held, p.grad = p.grad, None
                    p._set_data(new)
                    if held is not None:
                        p.grad = change(held)
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = change(b)
        return self

    def type(self: M, dst_type: dtype) -> M:
        """As ``to(dtype)``."""
        return self._cast(dst_type.code)

    def float(self: M) -> M:
        """Parameters and buffers to float32."""
        return self._cast(6)

    def double(self: M) -> M:
        """Parameters and buffers to float64."""
        return self._cast(7)

    def half(self: M) -> M:
        """Parameters and buffers to float16."""
        return self._cast(4)

    def bfloat16(self: M) -> M:
        """Parameters and buffers to bfloat16."""
        return self._cast(5)

    def cpu(self: M) -> M:
        """Move to the CPU."""
        return self._place(-1)

    def cuda(self: M, device: Any = None) -> M:
        """Move to the GPU; an error where there is none."""
        return self.to("cuda" if device is None else device)

    # -- text ---------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the brackets of ``repr``."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [
            f"({name}): " + repr(child).replace("\n", "\n  ")
            for name, child in self._modules.items()
        ]
        head = self._get_name() + "("
        if len(lines) == 1 and not children:
            return head + lines[0] + ")"
        if not lines and not children:
            return head + ")"
        return head + "\n  " + "\n  ".join(lines + children) + "\n)"


def _add_hook(
    hooks: dict[int, tuple[Callable[..., Any], bool]],
    hook: Callable[..., Any],
    prepend: bool,
    with_kwargs: bool,
) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    if prepend:
        later = dict(hooks)
        hooks.clear()
        hooks[handle.id] = (hook, with_kwargs)
        hooks.update(later)
    else:
        hooks[handle.id] = (hook, with_kwargs)
    return handle
