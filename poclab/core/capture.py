"""What programs print, taken in within bounds: of time, of memory and of disk space.

What they print may come from a guest or an image, so none of it is taken for short.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from poclab.core.units import KIB, MIB

LINE = 64 * KIB  # bytes of a line; the rest of a longer one is dropped
LOG = 256 * MIB  # bytes of a log; a large build with every package named takes some MiB
TAIL = 64 * KIB  # bytes that `Drain` keeps: enough for the last words of any program
_CHUNK = 64 * KIB  # bytes a read; what a pipe of Linux holds (pipe(7))
_LOOK = 1.0  # seconds between two looks at the clock


class TimeIsUp(Exception):
    """A program went on beyond its time."""


def taken(
    outputs: Sequence[IO[bytes]],
    until: float | None,
    feed: IO[bytes] | None = None,
    data: bytes = b"",
) -> Iterator[tuple[IO[bytes], bytes]]:
    """Take in what comes out of some pipes, as it comes, and write to another one meanwhile.

    Args:
        outputs: the pipes to read, to the end of all of them.
        until: when the time is up, by the monotonic clock; None for never.
        feed: the pipe to write to; it is closed when the data is written or nobody reads it.
        data: what to write.

    Yields:
        A pipe and some bytes of it, 64 KiB at most.

    Raises:
        TimeIsUp: some pipe is still open then.
    """
    left = memoryview(data)
    with selectors.DefaultSelector() as selector:
        for output in outputs:
            selector.register(output, selectors.EVENT_READ)
        if feed is not None:
            selector.register(feed, selectors.EVENT_WRITE)
        while selector.get_map():
            if until is not None and time.monotonic() >= until:
                raise TimeIsUp
            patience = _LOOK if until is None else min(_LOOK, max(0, until - time.monotonic()))
            for key, _ in selector.select(patience):
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                if stream is feed:
                    left = _fed(feed, left)
                    if not left:
                        selector.unregister(feed)
                        feed.close()
                elif chunk := os.read(key.fd, _CHUNK):
                    yield stream, chunk
                else:
                    selector.unregister(stream)


def _fed(feed: IO[bytes], left: memoryview) -> memoryview:
    """Write a little; returns what is left, nothing when nobody reads it."""
    try:
        # What is ready takes this much without blocking (select(2), PIPE_BUF).
        return left[os.write(feed.fileno(), left[: select.PIPE_BUF]) :]
    except BrokenPipeError:
        return left[:0]


class Lines:
    r"""Cuts what comes into lines; `\r` ends one too, as progress bars have it.

    Args:
        on_line: called for each line, without its end and cut to `LINE` bytes.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._pending = bytearray()

    def take(self, chunk: bytes) -> None:
        """Go on with some bytes."""
        first, *others = chunk.replace(b"\r", b"\n").split(b"\n")
        self._add(first)
        for piece in others:
            self._emit()
            self._add(piece)

    def end(self) -> None:
        """Give the last line, if it had no end."""
        if self._pending:
            self._emit()

    def _add(self, piece: bytes) -> None:
        self._pending += piece[: LINE - len(self._pending)]

    def _emit(self) -> None:
        text = self._pending.decode(errors="replace")
        self._pending.clear()
        self._on_line(text)


class Log:
    """A file that gets all of a program's output, up to `LOG` bytes of it.

    The program goes on when it is full: what was asked for is its work, not its words.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = LOG

    @classmethod
    def at(cls, path: Path | None) -> IO[bytes]:
        """Open a log for more to be added, or what takes the place of one."""
        return open(path, "ab") if path else open(os.devnull, "wb")  # noqa: PTH123

    def take(self, chunk: bytes) -> None:
        """Write some bytes, so that they can be read at once."""
        if self._left <= 0:
            return
        self._file.write(chunk[: self._left])
        self._left -= len(chunk)
        if self._left <= 0:
            self._file.write(f"\n[poclab: the log ends here, at {LOG // MIB} MiB]\n".encode())
        self._file.flush()


class Drain(threading.Thread):
    """Takes in a program's words beside other work, and keeps the last of them.

    Args:
        stream: the pipe they come from.
        most: bytes that are still fine.
        on_flood: called once, in the thread, when there are more.
    """

    def __init__(self, stream: IO[bytes], most: int, on_flood: Callable[[], None]) -> None:
        super().__init__(name="drain", daemon=True)
        self._stream = stream
        self._most = most
        self._on_flood = on_flood
        self._kept = bytearray()
        self.flooded = False

    def run(self) -> None:
        """What the thread does."""
        total = 0
        with self._stream:
            while chunk := os.read(self._stream.fileno(), _CHUNK):
                total += len(chunk)
                self._kept += chunk
                del self._kept[:-TAIL]
                if total > self._most and not self.flooded:
                    self.flooded = True
                    self._on_flood()

    def said(self, patience: float) -> str:
        """The last words, once the pipe is closed, or after some seconds if a child keeps it."""
        self.join(patience)
        return bytes(self._kept).decode(errors="replace")
