# SPDX-License-Identifier: Apache-2.0
"""A tensor as text, laid out as PyTorch's: aligned columns, long ones summarised.

Knows tensors through indexing and ``tolist`` only; NumPy is not needed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from paceline import _C, dtypes

if TYPE_CHECKING:
    from paceline._tensor import Tensor


class PrintOptions:
    """Settings of `set_printoptions`."""

    precision = 4
    threshold: float = 1000
    edgeitems = 3
    linewidth = 80
    sci_mode: bool | None = None


OPTIONS = PrintOptions()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors are printed.

    Parameters
    ----------
    precision : int, optional
        Digits after the point (4).
    threshold : int, optional
        Tensors of more elements are summarised (1000).
    edgeitems : int, optional
        Elements at each end of a summary (3).
    linewidth : int, optional
        Columns of a line (80).
    profile : {"default", "short", "full"}, optional
        Sets all of them.
    sci_mode : bool, optional
        Force the notation with exponents on or off.
    """
    profiles = {
        "default": (4, 1000, 3, 80),
        "short": (2, 1000, 2, 80),
        "full": (4, math.inf, 3, 80),
    }
    if profile is not None:
        if profile not in profiles:
            raise ValueError(
                f"[set_printoptions] profile: got {profile!r}, expected one of {list(profiles)}"
            )
        chosen = profiles[profile]
        OPTIONS.precision, OPTIONS.threshold = int(chosen[0]), chosen[1]
        OPTIONS.edgeitems, OPTIONS.linewidth = int(chosen[2]), int(chosen[3])
    if precision is not None:
        OPTIONS.precision = precision
    if threshold is not None:
        OPTIONS.threshold = threshold
    if edgeitems is not None:
        OPTIONS.edgeitems = edgeitems
    if linewidth is not None:
        OPTIONS.linewidth = linewidth
    OPTIONS.sci_mode = sci_mode


class Formatter:
    """How one number of a tensor is written: chosen once from all that will be shown."""

    def __init__(self, values: list[Any], floating: bool) -> None:
        self.floating = floating
        self.sci = False
        self.whole = True
        self.width = 1
        if not floating:
            self.width = max([1, *(len(str(v)) for v in values)])
            return
        shown = [v for v in values if math.isfinite(v) and v != 0]
        if not shown:
            return
        smallest, largest = min(map(abs, shown)), max(map(abs, shown))
        self.whole = all(v == math.ceil(v) for v in shown)
        self.sci = largest / smallest > 1000 or largest > 1e8 or smallest < 1e-4
        if OPTIONS.sci_mode is not None:
            self.sci = OPTIONS.sci_mode
        self.width = max(len(self._digits(v)) for v in shown)

    def _digits(self, value: float) -> str:
        if self.sci:
            return f"{value:.{OPTIONS.precision}e}"
        if not self.whole:
            return f"{value:.{OPTIONS.precision}f}"
        # The point alone says that the dtype is floating.
        return f"{value:.0f}." if math.isfinite(value) else f"{value:.0f}"

    def __call__(self, value: Any) -> str:
        return (self._digits(value) if self.floating else str(value)).rjust(self.width)


def _at_edges(t: Any) -> Any:
    # The elements that a summary shows, as one smaller tensor.
    edge = OPTIONS.edgeitems
    for dim, size in enumerate(t.shape):
        if size > 2 * edge:
            ends = (_C.slice(t, dim, 0, edge, 1), _C.slice(t, dim, size - edge, size, 1))
            t = _C.cat(ends, dim) if edge else _C.slice(t, dim, 0, 0, 1)
    return t


class Layout:
    """Nested brackets over the elements; `full` is the shape before a summary."""

    def __init__(self, full: tuple[int, ...], summarised: bool, write: Formatter) -> None:
        self.full = full
        self.summarised = summarised
        self.write = write

    def _is_cut(self, depth: int) -> bool:
        return self.summarised and self.full[depth] > 2 * OPTIONS.edgeitems

    def text(self, values: Any, depth: int, indent: int) -> str:
        left = len(self.full) - depth
        if left == 0:
            return self.write(values)
        if left == 1:
            return self._line(values, depth, indent)
        parts = [self.text(v, depth + 1, indent + 1) for v in values]
        if self._is_cut(depth):
            parts.insert(OPTIONS.edgeitems, "...")
        return "[" + ("," + "\n" * (left - 1) + " " * (indent + 1)).join(parts) + "]"

    def _line(self, values: list[Any], depth: int, indent: int) -> str:
        words = [self.write(v) for v in values]
        if self._is_cut(depth):
            words.insert(OPTIONS.edgeitems, " ...")
        per_line = max(1, (OPTIONS.linewidth - indent) // (self.write.width + 2))
        lines = [", ".join(words[at : at + per_line]) for at in range(0, len(words), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    out: list[Any] = []
    for v in values:
        out.extend(_flat(v))
    return out


def contents(t: Any, indent: int) -> str:
    """The numbers of a tensor in brackets."""
    summarised = t._numel() > OPTIONS.threshold
    shown = _C.detach(t)
    shown = _at_edges(shown) if summarised else shown
    values = _C.to_device(shown, -1, False).tolist()
    write = Formatter(_flat(values), t.dtype.is_floating_point)
    return Layout(tuple(t.shape), summarised, write).text(values, 0, indent)


def _joined(body: str, notes: list[str], indent: int) -> str:
    # Notes follow the numbers, and begin a new line where the last one is full.
    pieces = [body]
    room = len(body) - body.rfind("\n") + 1
    for note in notes:
        if room + len(note) + 2 > OPTIONS.linewidth:
            pieces.append(",\n" + " " * indent + note)
            room = indent + len(note)
        else:
            pieces.append(", " + note)
            room += len(note) + 2
    return "".join(pieces) + ")"


def to_text(t: Tensor) -> str:
    """What ``repr(t)`` gives."""
    prefix = "tensor("
    indent = len(prefix)
    notes: list[str] = []
    default = dtypes.get_default_dtype()
    usual = t.dtype in (default, dtypes.int64, dtypes.bool_)
    if t._numel() == 0:
        if t.ndim != 1:
            notes.append(f"size={tuple(t.shape)}")
        if t.dtype is not default:
            notes.append(f"dtype={t.dtype!r}")
        body = "[]"
    else:
        if not usual:
            notes.append(f"dtype={t.dtype!r}")
        body = contents(t, indent)
    if t.is_cuda:
        notes.insert(0, f"device='{t.device}'")
    made_by = t.grad_fn
    if made_by is not None:
        notes.append(f"grad_fn={made_by!r}")
    elif t.requires_grad:
        notes.append("requires_grad=True")
    return _joined(prefix + body, notes, indent)
