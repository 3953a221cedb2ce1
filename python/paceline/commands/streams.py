# SPDX-License-Identifier: Apache-2.0
"""What the ranks print, put together line by line, with tracebacks held back.

Several ranks write at once and one failure makes all of them print a traceback. So each rank's
stdout and stderr come through a descriptor of their own; whole lines are passed on, and from the
first line of a traceback on the text waits until it is known whose failure was the first. What
ranks other than 0 say on stderr waits as long in any case: most of it is the same on all ranks.
Knows nothing of processes. Used from one thread.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import select
import time
from collections.abc import Callable
from enum import Enum
from typing import TextIO

__all__ = ["HOLD_S", "DescriptorSink", "Hold", "Sink", "Stream", "TextSink"]

QUIET_S = 0.05  # a line without an end (a prompt, a progress bar) is passed on after this
HOLD_S = 0.3  # a traceback of a process that lives on (a logged exception) is shown after this
_READ_BYTES = 1 << 16
_HELD_BYTES_MAX = 1 << 20

# How Python begins to report what ends it: an exception (perhaps behind an unfinished progress
# bar), a group of them, a crash, bad syntax.
_REPORT = re.compile(
    rb"Traceback \(most recent call last\):|^  \+ Exception Group Traceback"
    rb'|^Error in sys.excepthook:|^Fatal Python error: |^  File "[^"\n]*", line \d+$',
    re.MULTILINE,
)
_LINE_START = re.compile(rb"(?<=[\n\r])(?=[^\n\r])")


class Hold(Enum):
    """What a stream holds back for a while."""

    NOTHING = "nothing"
    REPORTS = "reports"
    ALL = "all"


class Sink:
    """Where the text of several streams goes; keeps them from sharing a line.

    Attributes
    ----------
    closed : bool
        The reader has gone (``paceline launch ... | head``); the ranks are to be told.
    """

    def __init__(self) -> None:
        self.closed = False
        self._mid_line_of: object = None

    def emit(self, source: object, data: bytes) -> None:
        """Write the text of one stream, on a new line if another one left its own unfinished."""
        if self.closed or not data:
            return
        if self._mid_line_of not in (None, source):
            self.write(self._mid_line_of, b"\n")
        self._mid_line_of = None if data.endswith(b"\n") else source
        self.write(source, data)

    def write(self, source: object, data: bytes) -> None:
        """Write bytes as they are."""
        raise NotImplementedError


class DescriptorSink(Sink):
    """A descriptor of this process, in practice 1 or 2.

    Parameters
    ----------
    fd : int
        The descriptor; stays the caller's.
    give_up : callable
        Asked while the reader does not read: whether to drop the text, because the job is to end.
    """

    def __init__(self, fd: int, give_up: Callable[[], bool]) -> None:
        super().__init__()
        self._fd = fd
        self._give_up = give_up

    def write(self, source: object, data: bytes) -> None:
        """Write everything; wait for a slow reader, but not past the end of the job."""
        view = memoryview(data)
        while view:
            try:
                if not select.select((), (self._fd,), (), 0.1)[1]:
                    if self._give_up():
                        return
                    continue
                # A pipe that select calls writable takes this much without blocking.
                view = view[os.write(self._fd, view[: select.PIPE_BUF]) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    self.closed = True
                    return


class TextSink(Sink):
    """A text stream that need not have a descriptor, such as a notebook's cell."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file
        self._decoders: dict[object, codecs.IncrementalDecoder] = {}

    def write(self, source: object, data: bytes) -> None:
        """Decode and write; a character cut in two waits for its rest."""
        if source not in self._decoders:
            self._decoders[source] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._file.write(self._decoders[source].decode(data))
        self._file.flush()


class Stream:
    """One output stream of one rank.

    Parameters
    ----------
    fd : int
        Read end of a pipe or master of a pseudo-terminal; owned, made non-blocking.
    sink : Sink
        Where the text goes.
    prefix : bytes
        Put before each line.
    hold : Hold
        Which text waits.
    copy_fd : int
        Where everything that arrives is also written, as it is; -1 is nowhere.
    """

    def __init__(
        self,
        fd: int,
        sink: Sink,
        prefix: bytes = b"",
        hold: Hold = Hold.NOTHING,
        copy_fd: int = -1,
    ) -> None:
        os.set_blocking(fd, False)
        self._copy_fd = copy_fd
        self.fd = fd
        self.held = b""
        self._sink = sink
        self._prefix = prefix
        self._hold = hold
        self._partial = b""
        self._at_start = True
        self._changed_at = 0.0
        self._held_since = 0.0

    def fileno(self) -> int:
        """Give the descriptor, for ``selectors``."""
        return self.fd

    @property
    def restless(self) -> bool:
        """Whether text waits here for time to pass."""
        return bool(self._partial or self.held)

    def read(self) -> bool:
        """Take what has arrived.

        Returns
        -------
        bool
            False when nothing more will come.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:  # EIO: the last writer of a pseudo-terminal has gone
            return False
        if self._copy_fd >= 0:
            self._copy(data)
        if not data or self._sink.closed:
            return False
        self._changed_at = time.monotonic()
        data = self._partial + data
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._partial = data[cut:]
        self._take(data[:cut])
        return True

    def _copy(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._copy_fd, view) :]
        except OSError as error:  # a full disk: the job is worth more than its log
            self._copy_fd = -1
            self._sink.emit(self, f"paceline launch: log ends: {error.strerror}\n".encode())

    def drain(self) -> None:
        """Take everything that the ended writer has left in the pipe."""
        while select.select((self.fd,), (), (), 0)[0]:
            if not self.read():
                return

    def tick(self, now: float, failing: bool) -> None:
        """Pass on what has waited long enough; tracebacks only while no rank has failed."""
        if self.held:
            if len(self.held) > _HELD_BYTES_MAX or (
                not failing and now - self._held_since > HOLD_S
            ):
                self.release()
        elif self._partial and now - self._changed_at > QUIET_S:
            partial, self._partial = self._partial, b""
            self._pass_on(partial)

    def _take(self, lines: bytes) -> None:
        if self.held:
            self.held += lines
            return
        begin = len(lines)
        if self._hold is Hold.ALL:
            begin = 0
        elif self._hold is Hold.REPORTS:
            found = _REPORT.search(lines)
            begin = found.start() if found else begin
        self._pass_on(lines[:begin])
        self.held = lines[begin:]
        self._held_since = self._changed_at

    def _pass_on(self, data: bytes) -> None:
        if self._prefix and data:
            first = self._prefix if self._at_start else b""
            self._sink.emit(self, first + _LINE_START.sub(self._prefix, data))
            self._at_start = data.endswith((b"\n", b"\r"))
        else:
            self._sink.emit(self, data)

    def release(self) -> None:
        """Pass on everything that waits, a held traceback included."""
        held, self.held = self.held + self._partial, b""
        self._partial = b""
        self._pass_on(held)

    def take_report(self, all_of_it: bool) -> bytes:
        """Give what was held back from the beginning of a traceback on; pass on what was before.

        Parameters
        ----------
        all_of_it : bool
            Without a traceback in it, give everything: the writer failed, this is its message.

        Returns
        -------
        bytes
            The text, which this stream then forgets.
        """
        text = self.held + self._partial
        found = _REPORT.search(text)
        begin = found.start() if found else 0 if all_of_it and self.held else len(text)
        self.held, self._partial = b"", b""
        self._pass_on(text[:begin])
        return text[begin:]

    def close(self) -> None:
        """Close the descriptor; a rank that still writes gets EPIPE."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
