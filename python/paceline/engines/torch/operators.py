# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own record of its operators, as events of a profile.

PyTorch keeps times since 1970 on a clock of its own making; markers, whose places on the monotonic
clock are known, tell by how much they must be moved.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ...profiler.record import Event

__all__ = ["TorchOperators"]

_MARKER = "paceline: clock"
_MARKERS = 8  # of which one at least is made without the system taking the processor away
_NODE = "autograd::engine::evaluate_function: "  # wraps each node of the backward pass


class TorchOperators:
    """Records operators between ``start`` and ``stop``.

    Parameters
    ----------
    shapes : bool
        Keep the shapes of inputs.
    """

    def __init__(self, shapes: bool) -> None:
        self._shapes = shapes
        self._profile: Any = None
        self._marked: list[tuple[int, int]] = []

    def start(self) -> None:
        """Begin; the first time in a process PyTorch may take a second to get ready."""
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=self._shapes
        )
        self._profile.start()
        self._marked = []
        for _ in range(_MARKERS):
            before = time.monotonic_ns()
            with torch.profiler.record_function(_MARKER):
                pass
            self._marked.append((before, time.monotonic_ns()))

    def stop(self) -> dict[int, list[Event]]:
        """End; give the events of each thread, by its number in the system."""
        profile, self._profile = self._profile, None
        profile.stop()
        results = profile.profiler.kineto_results
        found: list[Any] = [] if results is None else list(results.events())
        shift = self._shift(found)
        threads: dict[int, list[Event]] = {}
        for one in found:
            event = self._event(one, shift)
            if event is not None:
                threads.setdefault(int(one.device_resource_id()), []).append(event)
        return threads

    def _shift(self, found: list[Any]) -> int:
        """Give what brings PyTorch's times to the monotonic clock.

        Each marker began between two moments that are known; the shift is what suits all.
        """
        shift = time.monotonic_ns() - time.time_ns()
        starts: list[int] = sorted(one.start_ns() for one in found if one.name() == _MARKER)
        if len(starts) != len(self._marked):
            return shift
        least = max(begin - at for at, (begin, _) in zip(starts, self._marked, strict=True))
        most = min(end - at for at, (_, end) in zip(starts, self._marked, strict=True))
        return max(least, min(shift, most))

    def _event(self, one: Any, shift: int) -> Event | None:
        name, length = one.name(), one.duration_ns()
        if name == _MARKER or name.startswith((_NODE, "ProfilerStep")) or length <= 0:
            return None
        kind = "operator"
        if name.endswith("Backward0"):
            kind, name = "backward", name.removesuffix("Backward0")
        elif name.startswith("torch::autograd::"):
            kind, name = "backward", name.removeprefix("torch::autograd::")
        elif name.startswith("Optimizer."):
            kind = "optimizer"
        elif name.startswith("enumerate(DataLoader)"):
            kind, name = "data", "DataLoader"
        elif not name.startswith("aten::"):
            kind = "user"
        start = one.start_ns() + shift
        return Event(kind, name, start, start + length, 0, -1, self._shapes_of(one))

    def _shapes_of(self, one: Any) -> str:
        if not self._shapes:
            return ""
        return " ".join(str(list(shape)) for shape in one.shapes() if shape)
