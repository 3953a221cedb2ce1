# SPDX-License-Identifier: Apache-2.0
"""Streams and events of the GPU, with PyTorch's names and rules. Knows no kernel.

Rules that are this package's stand in docs/cuda.md, "Streams".
"""

from __future__ import annotations

from paceline import _C, _device

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from types import TracebackType

    Where = str | int | _device.device | None

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "set_stream",
    "stream",
]


def _open(op: str, device: Where) -> int:
    return _device.open_gpu(op, _device.index_of(op, device))


class Stream:
    """A queue of work on the GPU: in order by itself, unordered against other streams.

    Parameters
    ----------
    device : device, optional
        The GPU of this process.
    priority : int
        Below 0: work on it goes first.

    Raises
    ------
    DeviceError
        Where there is no such GPU.

    Notes
    -----
    There are 32 of each priority; a process that makes more gets those again, as in PyTorch.
    """

    __slots__ = ("_number", "device", "priority")

    def __init__(self, device: Where = None, priority: int = 0) -> None:
        self.device = _device.named(_open("cuda.Stream", device))
        self.priority = -1 if priority < 0 else 0
        self._number = _C.cuda_stream_new(priority < 0)

    @property
    def cuda_stream(self) -> int:
        """CUDA's handle, for other libraries."""
        return _C.cuda_stream_handle(self._number)

    def wait_event(self, event: Event) -> None:
        """Let what comes on this stream wait for an event; the host does not wait."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let what comes on this stream wait for all that is on another one now."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, by default a new one, behind all that is on this stream."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether all that was put on this stream is done."""
        return self.record_event().query()

    def synchronize(self) -> None:
        """Wait for all that was put on this stream; Ctrl-C ends the wait."""
        _C.cuda_stream_synchronize(self._number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other._number == self._number

    def __hash__(self) -> int:
        return hash(("paceline.cuda.Stream", self._number))

    def __repr__(self) -> str:
        return f"<paceline.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class Event:
    """A mark on a stream, which other streams and the host can wait for.

    Parameters
    ----------
    enable_timing : bool
        Whether it knows when it was reached, for `elapsed_time`.
    blocking : bool
        Accepted: a wait of the host always sleeps between its looks.
    interprocess : bool
        Not built.

    Raises
    ------
    NotImplementedError
        With `interprocess`.
    DeviceError
        At its first record, where there is no GPU.
    """

    __slots__ = ("_event", "_recorded", "_timed")

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess:
            raise NotImplementedError(
                "[cuda.Event] interprocess: got True, expected False: events are not shared "
                "between processes; synchronize and send a message instead"
            )
        self._timed = enable_timing
        self._event: object = None  # made at the first record
        self._recorded = False

    def record(self, stream: Stream | None = None) -> None:
        """Set the mark behind all that is on a stream (the current one); an earlier one is gone."""
        stream = current_stream() if stream is None else stream
        if self._event is None:
            self._event = _C.cuda_event_new(self._timed)
        _C.cuda_event_record(self._event, stream._number)
        self._recorded = True

    def wait(self, stream: Stream | None = None) -> None:
        """Let what comes on a stream (the current one) wait for the mark; none is no wait."""
        stream = current_stream() if stream is None else stream
        if self._recorded:
            _C.cuda_event_wait(self._event, stream._number)

    def query(self) -> bool:
        """Whether the mark was reached; True where none was set."""
        return not self._recorded or _C.cuda_event_done(self._event)

    def synchronize(self) -> None:
        """Wait until the mark is reached; Ctrl-C ends the wait."""
        if self._recorded:
            _C.cuda_event_synchronize(self._event)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds on the GPU from this mark to another.

        Raises
        ------
        ValueError
            If either was made without ``enable_timing=True`` or never recorded.
        RuntimeError
            If either was not reached yet.
        """
        for name, event in (("this event", self), ("end_event", end_event)):
            if not event._timed:
                raise ValueError(
                    f"[cuda.Event.elapsed_time] {name} holds no time: got enable_timing=False, "
                    "expected True"
                )
            if not event._recorded:
                raise ValueError(
                    f"[cuda.Event.elapsed_time] {name} was never recorded: call record() first"
                )
            if not event.query():
                raise RuntimeError(
                    f"[cuda.Event.elapsed_time] {name} was not reached yet: call synchronize() "
                    "on it first"
                )
        return _C.cuda_event_elapsed(self._event, end_event._event)

    def __repr__(self) -> str:
        state = "recorded" if self._recorded else "not recorded"
        return f"<paceline.cuda.Event {state}>"


def _stream_of(number: int) -> Stream:
    made = Stream.__new__(Stream)
    made.device = _device.named(_C.cuda_current())
    made.priority = 0
    made._number = number
    return made


_current: dict[int, Stream] = {}  # chosen streams by number, so that priorities are kept


def current_stream(device: Where = None) -> Stream:
    """The stream that this thread's work goes on.

    Raises
    ------
    DeviceError
        Where there is no such GPU.
    """
    _open("cuda.current_stream", device)
    number = _C.cuda_stream_current()
    return _current.get(number) or _stream_of(number)


def default_stream(device: Where = None) -> Stream:
    """The stream that work goes on where none was chosen.

    Raises
    ------
    DeviceError
        Where there is no such GPU.
    """
    _open("cuda.default_stream", device)
    return _stream_of(0)


def set_stream(stream: Stream | None) -> None:
    """Let what this thread does from now on go on a stream; None changes nothing."""
    if stream is not None:
        _current[stream._number] = stream
        _C.cuda_stream_choose(stream._number)


class StreamContext:
    """What `stream` gives: the stream is this thread's inside of ``with``."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._before: list[Stream] = []

    def __enter__(self) -> None:
        if self.stream is not None:
            self._before.append(current_stream())
            set_stream(self.stream)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream is not None:
            set_stream(self._before.pop())


def stream(stream: Stream | None) -> StreamContext:
    """Let what this thread does inside of ``with`` go on a stream; None changes nothing.

    As in PyTorch, streams are ordered by who uses them (`Stream.wait_stream`, `Event`): work on
    one does not wait for what another computes. Memory is safe without that: what an operator
    reads is kept from others until it has been read, on whatever stream.

    Examples
    --------
    >>> import paceline
    >>> if paceline.cuda.is_available():
    ...     side = paceline.cuda.Stream()
    ...     x = paceline.ones(3, device="cuda")
    ...     side.wait_stream(paceline.cuda.current_stream())
    ...     with paceline.cuda.stream(side):
    ...         y = x * 2
    ...     paceline.cuda.current_stream().wait_stream(side)
    """
    return StreamContext(stream)
