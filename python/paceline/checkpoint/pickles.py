# SPDX-License-Identifier: Apache-2.0
"""Reads pickles without trusting them: plain containers, and what a caller's table can build.

Python's own unpickler calls whatever a file names. This one is an interpreter of its own over the
same opcodes (``pickletools`` only takes the bytes apart): a global of the file becomes a mere
name, a name does something only if it is in the table that the caller gives, and containers are
filled only if they are the plain ones. Nothing of the file is imported, called or set as an
attribute. Knows no tensor (``torch_file.py`` does).
"""

from __future__ import annotations

import pickletools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from ..safetensors_format import FormatError

__all__ = ["BUILDERS", "Builder", "Name", "Stateful", "read_pickle"]

Builder = Callable[..., Any]
_KEY_DEPTH = 8  # tuples within tuples as a key; hashing deeper ones could overflow the C stack
_OPCODES = 50_000_000


@dataclass(frozen=True)
class Name:
    """A global that the file names; it stands for nothing by itself."""

    text: str


class Stateful:
    """Base of what a table's builder may give where the pickle sets a state afterwards."""

    def finish(self, state: Any) -> Any:
        """Give what takes this object's place, now that there is a state."""
        raise NotImplementedError


def read_pickle(
    file: IO[bytes],
    builders: Mapping[str, Builder],
    persistent: Callable[[Any], Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Any:
    """Read one pickle; the file then stands behind it.

    Parameters
    ----------
    file : binary file
        Where from.
    builders : mapping
        What a global may be called for: its name, ``"collections.OrderedDict"``, to the function
        that takes its arguments instead.
    persistent : callable, optional
        Gives what a persistent id stands for.
    constants : mapping, optional
        What a global stands for by itself.

    Raises
    ------
    FormatError
        If the pickle is damaged, or holds anything but plain containers and what the table builds;
        the text names the global.
    """
    machine = _Machine({**BUILDERS, **builders}, persistent, constants or {})
    try:
        return machine.run(file)
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"[load] pickle is damaged: {type(error).__name__}: {error}") from error


def _check_key(key: Any, depth: int = 0) -> Any:
    plain = key is None or isinstance(key, (str, int, float, bytes, complex))
    if not plain:
        if type(key) not in (tuple, frozenset) or depth == _KEY_DEPTH:
            raise FormatError(
                f"[load] pickle: got a {type(key).__name__} as a key, expected text or numbers"
            )
        for item in key:
            _check_key(item, depth + 1)
    return key


# -- plain containers that have a name -------------------------------------------------------


def _dict_of(kind: Any, pairs: Any) -> Any:
    made = kind()
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        made[_check_key(key)] = value
    return made


def _default_dict(factory: Any = None, items: Any = ()) -> Any:
    kinds = {"builtins.dict": dict, "builtins.list": list, "builtins.int": int}
    kinds |= {"builtins.float": float, "builtins.set": set, "builtins.str": str}
    if factory is not None and not (isinstance(factory, Name) and factory.text in kinds):
        raise FormatError(f"[load] pickle: got {factory!r} as the factory of a defaultdict")
    made: Any = defaultdict(None if factory is None else kinds[factory.text])
    made.update(_dict_of(dict, items))
    return made


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise FormatError(f"[load] pickle: got bytes in {encoding!r}, expected latin1")
    return text.encode("latin1")


BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": lambda items=(): _dict_of(OrderedDict, items),
    "collections.Counter": lambda items=(): _dict_of(Counter, items),
    "collections.defaultdict": _default_dict,
    "builtins.set": lambda items=(): {_check_key(item) for item in items},
    "builtins.frozenset": lambda items=(): frozenset(_check_key(item) for item in items),
    "builtins.bytearray": lambda data=b"", *encoding: bytearray(
        _encode(data, *encoding) if isinstance(data, str) else bytes(_bytes(data))
    ),
    "builtins.bytes": lambda data=b"": _bytes(data),
    "builtins.complex": lambda real, imag: complex(float(real), float(imag)),
    "_codecs.encode": _encode,
}


def _bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise FormatError(f"[load] pickle: got {type(data).__name__}, expected bytes")
    return bytes(data)


class _Machine:
    """One run: a stack, the marks on it, and the memo."""

    def __init__(
        self,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any] | None,
        constants: Mapping[str, Any],
    ) -> None:
        self._builders = builders
        self._constants = constants
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for count, (opcode, value, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if count > _OPCODES:
                raise FormatError(f"[load] pickle: more than {_OPCODES} operations")
            if name == "STOP":
                break
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _VALUES:
                self._stack.append(value)
            else:
                action = getattr(self, f"_do_{name.lower()}", None)
                if action is None:
                    raise FormatError(f"[load] pickle: the operation {name} is refused")
                action(value)
        if len(self._stack) != 1 or self._marks:
            raise FormatError("[load] pickle is damaged: it does not end with one value")
        _check_names(self._stack[0])
        return self._stack[0]

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise FormatError("[load] pickle is damaged: it takes values from below a mark")
        return self._stack.pop()

    def _to_mark(self) -> list[Any]:
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    # -- opcodes, by their names in pickletools ---------------------------------------------------

    def _do_proto(self, value: int) -> None:
        if value > 5:
            raise FormatError(f"[load] pickle: protocol {value}, expected 5 at most")

    def _do_frame(self, value: int) -> None:
        pass

    def _do_mark(self, value: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_pop(self, value: Any) -> None:
        self._pop()

    def _do_pop_mark(self, value: Any) -> None:
        self._to_mark()

    def _do_put(self, value: int) -> None:
        self._memo[int(value)] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, value: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, value: int) -> None:
        self._stack.append(self._memo[int(value)])

    _do_binget = _do_long_binget = _do_get

    def _do_tuple(self, value: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _do_tuple1(self, value: Any) -> None:
        self._last(1)

    def _do_tuple2(self, value: Any) -> None:
        self._last(2)

    def _do_tuple3(self, value: Any) -> None:
        self._last(3)

    def _last(self, n: int) -> None:
        items = [self._pop() for _ in range(n)]
        self._stack.append(tuple(reversed(items)))

    def _do_list(self, value: Any) -> None:
        self._stack.append(self._to_mark())

    def _do_append(self, value: Any) -> None:
        item = self._pop()
        self._target(list).append(item)

    def _do_appends(self, value: Any) -> None:
        items = self._to_mark()
        self._target(list).extend(items)

    def _do_dict(self, value: Any) -> None:
        items = self._to_mark()
        self._stack.append(_dict_of(dict, _pairs(items)))

    def _do_setitem(self, value: Any) -> None:
        item, key = self._pop(), self._pop()
        self._target(dict, OrderedDict, Counter, defaultdict)[_check_key(key)] = item

    def _do_setitems(self, value: Any) -> None:
        pairs = _pairs(self._to_mark())
        target = self._target(dict, OrderedDict, Counter, defaultdict)
        for key, item in pairs:
            target[_check_key(key)] = item

    def _do_additems(self, value: Any) -> None:
        items = self._to_mark()
        self._target(set).update(_check_key(item) for item in items)

    def _do_frozenset(self, value: Any) -> None:
        self._stack.append(frozenset(_check_key(item) for item in self._to_mark()))

    def _target(self, *kinds: type) -> Any:
        target = self._stack[-1]
        if type(target) not in kinds:
            raise FormatError(
                f"[load] pickle: fills a {type(target).__name__}, expected a {kinds[0].__name__}"
            )
        return target

    def _do_global(self, value: str) -> None:
        module, _, name = value.partition(" ")
        self._name(module, name)

    def _do_stack_global(self, value: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FormatError("[load] pickle is damaged: a global's name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        module = "builtins" if module == "__builtin__" else module
        text = f"{module}.{name}"
        self._stack.append(self._constants[text] if text in self._constants else Name(text))

    def _do_reduce(self, value: Any) -> None:
        args, function = self._pop(), self._pop()
        self._build(function, args)

    _do_newobj = _do_reduce

    def _build(self, function: Any, args: Any) -> None:
        builder = self._builders.get(function.text) if isinstance(function, Name) else None
        if builder is None:
            raise _refuse(function)
        if not isinstance(args, tuple):
            raise FormatError(f"[load] pickle is damaged: arguments of {function.text}")
        self._stack.append(builder(*args))

    def _do_build(self, value: Any) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Stateful):
            self._stack[-1] = finished = target.finish(state)
            for at in [at for at, held in self._memo.items() if held is target]:
                self._memo[at] = finished
        elif type(target) is not OrderedDict or not isinstance(state, dict):
            # Of a state dict's attributes (PyTorch's _metadata) nothing is kept.
            raise FormatError(
                f"[load] pickle: sets the state of a {_kind(target)}, which is refused"
            )

    def _do_binpersid(self, value: Any) -> None:
        if self._persistent is None:
            raise FormatError("[load] pickle: refers to data that is not in it")
        self._stack.append(self._persistent(self._pop()))


def _check_names(found: Any) -> None:
    """Refuse a value that a global of the file is part of: it stands for nothing here."""
    seen: set[int] = set()
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, (Name, Stateful)):
            raise _refuse(one)
        if isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            left.extend(one.values() if isinstance(one, dict) else one)


def _kind(target: Any) -> str:
    return target.text if isinstance(target, Name) else type(target).__name__


def _refuse(function: Any) -> FormatError:
    what = function.text if isinstance(function, Name) else f"a {type(function).__name__}"
    return FormatError(
        f"[load] the file asks for {what}, which is refused: got an object that is no tensor or "
        "plain container; a pickle may run any code, so only tensors, numbers, texts and "
        "containers of them are read"
    )


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
