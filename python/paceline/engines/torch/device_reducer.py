# SPDX-License-Identifier: Apache-2.0
"""The reducer for gradients that do not lie in CPU memory: the core's, said again over torch.

It has the methods of ``_C.Reducer`` (csrc/ddp, Note [outside gradients]) and its layout: buckets in
reverse order of registration, sent in that order. They are in the device's memory, and go through a
``DeviceGroup``. Which ranks have which gradients, and whether all sent the same buckets, the ranks
tell one another over the core once a pass, before any waits for another's bucket.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..._call_site import frames_of_ours
from ...errors import CollectiveMismatchError

if TYPE_CHECKING:
    from .device_group import DeviceGroup

__all__ = ["DeviceReducer"]

_ALIGN = 64  # bytes; gradients start on lines of the memory
_ONE_BUCKET = 4 << 20  # a model this small has one bucket


@dataclass
class _Bucket:
    """Gradients that go together."""

    flat: torch.Tensor
    members: list[int]
    ready: int = 0
    work: Any = None  # once it is on its way


class DeviceReducer:
    """See ``_C.Reducer`` in the stub of the core.

    Parameters
    ----------
    link : DeviceGroup
        How the ranks reach one another.
    params : sequence of Tensor
        All on one device; of the same shapes and dtypes on all ranks.
    names : sequence of str
        Theirs.
    first_bytes, bucket_bytes : int
        Sizes of buckets.
    """

    def __init__(
        self,
        link: DeviceGroup,
        params: Sequence[torch.Tensor],
        names: Sequence[str],
        first_bytes: int,
        bucket_bytes: int,
    ) -> None:
        self._link = link
        self._names = names
        self._number = next(link.reducers)
        self._sync, self._broken, self.owed = True, False, False
        self._ready = [False] * len(params)
        self._defined = [False] * len(params)
        self._views: list[torch.Tensor] = [torch.empty(0)] * len(params)
        self._bucket_of = [0] * len(params)
        self._buckets: list[_Bucket] = []
        self._sent = 0
        self._trail = 0  # the link's when the last bucket of this pass was sent
        for members in _layout(params, first_bytes, bucket_bytes):
            self._add(params, members)

    def _add(self, params: Sequence[torch.Tensor], members: list[int]) -> None:
        dtype = _real(params[members[0]].dtype)
        places, at = [], 0
        for i in members:
            places.append(at)
            at += _padded(params[i]) // dtype.itemsize
        flat = torch.zeros(at, dtype=dtype, device=params[members[0]].device)
        for i, place in zip(members, places, strict=True):
            self._views[i] = _view(flat, place, params[i])
            self._bucket_of[i] = len(self._buckets)
        self._buckets.append(_Bucket(flat, members))

    @property
    def buckets(self) -> list[list[int]]:
        """Parameter numbers, in their order in memory."""
        return [bucket.members for bucket in self._buckets]

    def grad(self, i: int) -> torch.Tensor:
        """Give the place of a gradient, with the strides of its parameter."""
        view = self._views[i]  # not that itself: a script may exchange a gradient's memory
        return _over(view, view.shape, view.stride(), view.storage_offset(), view.dtype)

    # --- during a pass --------------------------------------------------------------------------

    def set_sync(self, on: bool) -> None:
        """Reduce, or only accumulate."""
        self._sync = on

    def expect(self) -> None:
        """Note that a reduction is owed."""
        self.owed = True

    def ready(self, i: int) -> bool:
        """Note that a gradient is complete; False: it comes too late, its bucket is sent."""
        self._check_whole()
        bucket = self._buckets[self._bucket_of[i]]
        if self._ready[i]:
            return bucket.work is None
        self._defined[i] = True
        if self._sync:
            self.owed = self._ready[i] = True
            bucket.ready += 1
            while self._sent < len(self._buckets) and self._next_is_full():
                self._send()
        return True

    def mark(self, i: int, defined: bool) -> None:
        """Note whether there is a gradient."""
        self._defined[i] = defined

    @property
    def missing(self) -> list[int]:
        """Those not ready in this pass."""
        return [i for i, ready in enumerate(self._ready) if not ready]

    @property
    def marked(self) -> list[int]:
        """Those with a gradient."""
        return [i for i, defined in enumerate(self._defined) if defined]

    def fail(self) -> None:
        """Note that a pass failed half-way; it is forgotten where nothing was sent."""
        if self._sent:
            self._broken = True
            self._link.abort()
        else:
            self._forget()

    def _check_whole(self) -> None:
        if self._broken:
            raise RuntimeError(
                "[ddp] an earlier backward pass failed half-way, so gradients and ranks are out of "
                "step: restart the job from its last checkpoint"
            )

    def _next_is_full(self) -> bool:
        bucket = self._buckets[self._sent]
        return bucket.ready == len(bucket.members)

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        for i in bucket.members:
            if not self._defined[i]:
                self._views[i].zero_()
        bucket.work = self._link.start_sum(bucket.flat, f"{self._number}.{self._sent}")
        self._sent += 1
        self._trail = self._link.trail

    # --- the end of a pass ----------------------------------------------------------------------

    def finalize(self) -> None:
        """Send what was not, wait, and give every rank the mean."""
        if not self._sync:
            self.owed = False
        if not self.owed:
            return
        self._check_whole()
        try:
            self._finish()
        except BaseException:
            self._broken = True
            self._link.abort()
            raise
        self._forget()

    def _finish(self) -> None:
        while self._sent < len(self._buckets):
            self._send()
        self._defined = self._compare()
        for bucket in self._buckets:
            self._link.wait(bucket.work)
            bucket.flat.div_(self._link.group.world_size)

    def _compare(self) -> list[bool]:
        """Give which gradients any rank has, having seen that all sent the same buckets.

        Raises
        ------
        CollectiveMismatchError
            When they did not: torch has then added what does not belong together.
        """
        trail = self._trail
        # The largest of a number and of its negative are this rank's only if all are equal.
        said = array("q", [trail, -trail, *map(int, self._defined)])
        self._link.group.all_reduce(said, _max(), depth=frames_of_ours())
        if (said[0], said[1]) != (trail, -trail):
            raise CollectiveMismatchError(
                "[backward] the ranks reduced gradients in different orders: here last those of "
                f"the model with {self._names[0]!r}; on a GPU every rank must run the same models "
                "in the same order, and use all of their parameters where several train together"
            )
        return [bool(one) for one in said[2:]]

    def _forget(self) -> None:
        self._ready = [False] * len(self._ready)
        self._sent, self.owed = 0, False
        for bucket in self._buckets:
            bucket.ready, bucket.work = 0, None


def _max() -> Any:
    from paceline.distributed import ReduceOp

    return ReduceOp.MAX


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _padded(parameter: torch.Tensor) -> int:
    nbytes: int = parameter.numel() * parameter.element_size()
    return (nbytes + _ALIGN - 1) // _ALIGN * _ALIGN


def _layout(params: Sequence[torch.Tensor], first: int, most: int) -> list[list[int]]:
    """Give the numbers of parameters by bucket; the same on all ranks (csrc/ddp/layout.c)."""
    small = sum(map(_padded, params)) <= _ONE_BUCKET
    found: list[list[int]] = []
    used, dtype = 0, None
    for i in reversed(range(len(params))):
        size = _padded(params[i])
        cap = first if len(found) <= 1 and not small else most
        if not found or dtype != _real(params[i].dtype) or (used and used + size > cap):
            found.append([])
            used, dtype = 0, _real(params[i].dtype)
        found[-1].append(i)
        used += size
    return found


def _view(flat: torch.Tensor, at: int, parameter: torch.Tensor) -> torch.Tensor:
    """Give the tensor over a place in a bucket, which is no view to torch: it may be detached."""
    dense = torch.empty_like(parameter, device="meta")  # strides that torch wants of the gradient
    each = parameter.element_size() // flat.element_size()  # a complex number is two
    return _over(flat, dense.shape, dense.stride(), at // each, parameter.dtype)


def _over(
    memory: torch.Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    made = torch.empty(0, dtype=dtype, device=memory.device)
    return made.set_(memory.untyped_storage(), offset, tuple(shape), tuple(strides))
