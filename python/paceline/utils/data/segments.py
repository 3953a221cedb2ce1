# SPDX-License-Identifier: Apache-2.0
"""How a batch gets from a worker process to its loader.

Tensors and arrays, in whatever nesting, are written into shared memory; the structure around them
is pickled and goes through the socket (into the memory too where it is long). The memory is a few
segments per worker, memfds without a name, used again as soon as no tensor of an earlier batch
looks at them: the loader's side hands out tensors *over* a segment, without a copy. Who keeps many
batches gets copies beyond `_KEPT`, so that the ring stays small.

Pickles come from the loader's own children only, over a socket nobody else has.
"""

from __future__ import annotations

import io
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from paceline import _C
from paceline._tensor import Tensor

_ALIGN = 64
_LEAST = 1 << 16  # of a segment
_INLINE = 1 << 14  # a pickle up to this goes through the socket
_KEPT = 2  # segments that the loader's user may hold beyond those in flight
_U8 = 1


class Parcel(NamedTuple):
    """A batch on its way.

    Attributes
    ----------
    pickle : bytes or None
        The structure; None: it lies in the segment, in the last place.
    places : list of (int, int)
        Offset and length in bytes of each tensor, then of each other buffer.
    n_tensors : int
        How many places are tensors'.
    segment : int
        Which segment; -1 for none.
    nbytes : int
        Size of the segment where it is new, else 0: its descriptor comes with the message.
    dropped : int
        A segment that is used no more, or -1.
    """

    pickle: bytes | None
    places: list[tuple[int, int]]
    n_tensors: int
    segment: int
    nbytes: int
    dropped: int


class _Packer(pickle.Pickler):
    """Pickles a batch, leaving tensors out: they are collected in `tensors`."""

    def __init__(self, file: io.BytesIO, buffers: list[memoryview]) -> None:
        super().__init__(file, 5, buffer_callback=lambda b: self._collect(b, buffers))
        self.tensors: list[_C.Tensor] = []

    @staticmethod
    def _collect(buffer: pickle.PickleBuffer, buffers: list[memoryview]) -> bool:
        raw = buffer.raw()
        if raw.nbytes == 0:
            return True  # in the pickle
        buffers.append(raw)
        return False

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or not obj._numel() or (obj.requires_grad and not obj.is_leaf):
            return NotImplemented
        self.tensors.append(obj)
        return _arrived, (len(self.tensors) - 1, obj._dtype, obj.shape, obj.requires_grad)


class SegmentWriter:
    """The worker's side: packs batches into segments of its own."""

    def __init__(self) -> None:
        self._segments: dict[int, _C.SharedMemory] = {}
        self._free: set[int] = set()
        self._next = 0

    def release(self, segments: list[int]) -> None:
        """Note segments whose batches nobody looks at any more."""
        self._free.update(s for s in segments if s in self._segments)

    def pack(self, batch: Any, send: Callable[[Parcel, list[int]], None]) -> None:
        """Write a batch and hand the parcel, with the descriptor of a new segment, to `send`."""
        file, buffers = io.BytesIO(), []  # type: ignore[var-annotated]
        packer = _Packer(file, buffers)
        packer.dump(batch)
        data: bytes | None = file.getvalue()
        assert data is not None
        sizes = [t._numel() * _SIZES[t._dtype] for t in packer.tensors]
        sizes += [b.nbytes for b in buffers]
        if len(data) > _INLINE:
            buffers.append(memoryview(data))
            sizes.append(len(data))
            data = None
        places, end = [], 0
        for size in sizes:
            places.append((end, size))
            end += -(-size // _ALIGN) * _ALIGN
        if not places:
            send(Parcel(data, [], 0, -1, 0, -1), [])
            return
        number, fd, dropped = self._segment(end)
        try:
            memory = self._segments[number]
            n = len(packer.tensors)
            for tensor, (offset, _) in zip(packer.tensors, places, strict=False):
                _C.copy_(memory.tensor(offset, tensor._dtype, tensor.shape), _C.detach(tensor))
            for buffer, (offset, _) in zip(buffers, places[n:], strict=True):
                memory.write(offset, buffer)
            nbytes = memory.nbytes if fd is not None else 0
            parcel = Parcel(data, places, n, number, nbytes, dropped)
            send(parcel, [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)

    def _segment(self, nbytes: int) -> tuple[int, int | None, int]:
        """Choose a free segment, or make one: number, descriptor if new, number of one dropped."""
        from paceline.distributed.linux import memfd_create

        fitting = [s for s in self._free if self._segments[s].nbytes >= nbytes]
        if fitting:
            number = min(fitting, key=lambda s: (self._segments[s].nbytes, s))
            self._free.discard(number)
            return number, None, -1
        dropped = -1
        if self._free:  # all too small: one of them makes place
            dropped = min(self._free, key=lambda s: (self._segments[s].nbytes, s))
            self._free.discard(dropped)
            del self._segments[dropped]
        # Some room for the next batch to be a little larger.
        size = max(_LEAST, -(-(nbytes + nbytes // 8) // _LEAST) * _LEAST)
        number = self._next
        self._next += 1
        fd = memfd_create("paceline-batches", size)
        try:
            self._segments[number] = _C.map_shared(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return number, fd, dropped


class SegmentReader:
    """The loader's side, one for each worker."""

    def __init__(self, in_flight: int) -> None:
        self._segments: dict[int, _C.SharedMemory] = {}
        self._held: set[int] = set()  # written by the worker and not given back yet
        self._waiting: set[int] = set()  # of these, with a batch that is not unpacked yet
        self._most = in_flight + _KEPT

    def register(self, parcel: Parcel, fds: list[int]) -> None:
        """Map the segment that came with a parcel; at once, also for a batch that waits."""
        try:
            if parcel.dropped >= 0:
                self._segments.pop(parcel.dropped, None)
            if fds:
                self._segments[parcel.segment] = _C.map_shared(fds[0], parcel.nbytes)
            if parcel.segment >= 0:
                self._held.add(parcel.segment)
                self._waiting.add(parcel.segment)
        finally:
            for fd in fds:
                os.close(fd)

    def discard(self, parcel: Parcel) -> None:
        """Forget a batch that nobody will read."""
        self._waiting.discard(parcel.segment)

    def unpack(self, parcel: Parcel) -> Any:
        """Give the batch, over the segment's memory where not too many are held."""
        memory = self._segments.get(parcel.segment)
        in_use = sum(self._segments[s].users > 0 for s in self._held)
        _arriving.scene = _Scene(memory, parcel.places, in_use >= self._most)
        try:
            n = parcel.n_tensors
            buffers = [_arriving.scene.buffer(i) for i in range(n, len(parcel.places))]
            data: Any = parcel.pickle if parcel.pickle is not None else buffers.pop()
            return pickle.loads(data, buffers=buffers)
        finally:
            _arriving.scene = None
            self._waiting.discard(parcel.segment)

    def freed(self) -> list[int]:
        """Take the segments that neither a waiting batch nor a tensor needs any more."""
        freed = [s for s in self._held - self._waiting if self._segments[s].users == 0]
        self._held.difference_update(freed)
        return freed


class _Scene:
    """What `_arrived` needs to know of the parcel that is being unpacked."""

    def __init__(
        self, memory: _C.SharedMemory | None, places: list[tuple[int, int]], copy: bool
    ) -> None:
        self._memory, self._places, self._copy = memory, places, copy

    def tensor(self, place: int, dtype: int, shape: tuple[int, ...]) -> Tensor:
        """Give the tensor in a place."""
        assert self._memory is not None
        t = self._memory.tensor(self._places[place][0], dtype, shape)
        return _C.clone(t) if self._copy else t

    def buffer(self, place: int) -> memoryview:
        """Give the bytes in a place; arrays are made over them."""
        return memoryview(self.tensor(place, _U8, (self._places[place][1],)))


class _Arriving(threading.local):
    scene: Any = None


_arriving = _Arriving()
_SIZES = (1, 1, 4, 8, 2, 2, 4, 8)  # bytes of an element, by the core's code of a dtype


def _arrived(place: int, dtype: int, shape: tuple[int, ...], requires_grad: bool) -> Tensor:
    """Stand in a pickle for the tensor that lies in a place of the segment."""
    t: Tensor = _arriving.scene.tensor(place, dtype, shape)
    if requires_grad:
        t.requires_grad = True
    return t
