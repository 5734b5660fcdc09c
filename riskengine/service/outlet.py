"""Standard error that never waits for who reads it: lines are queued, and a thread of its own writes them.

A pipe that nobody reads is full after 64 KiB, and whoever writes the next line waits for ever: that was the
judge with an alert to tell of, under its lock, or the event loop. What finds no room is dropped and counted.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

BYTES_MAX: Final = 1 << 20  # that wait; some 5,000 lines
WRITE_BYTES: Final = getattr(select, "PIPE_BUF", 512)  # at once: of workers on one pipe none cuts another's
DRAIN_SECONDS: Final = 1.0  # at exit, for a reader that is slow or has stopped


class Outlet(io.TextIOBase):
    """Stands in for sys.stderr: what is logged goes through it, and what anything prints there."""

    def __init__(
        self, fd: int | None, encoding: str, report: Callable[[int], str], bytes_max: int = BYTES_MAX
    ) -> None:
        """`report` is the line that says how many were dropped. Without a descriptor all are."""
        self._fd = fd
        self._encoding = encoding
        self._report = report
        self._bytes_max = bytes_max
        self._changed = threading.Condition()  # its lock lets a signal's handler in that says something too
        self._begun = ""  # a line without its end
        self._lines: deque[bytes] = deque()
        self._held = 0  # bytes of what waits or is being written
        self._full = False  # nothing is taken in until half of it is written: one report, not one a line
        self._untold = 0  # of `dropped`
        self._ends = False
        self._before: TextIO | None = None  # sys.stderr
        self.dropped = 0
        threading.Thread(target=self._work, name="riskengine-stderr", daemon=True).start()

    @classmethod
    def instead(cls, report: Callable[[int], str]) -> Outlet | None:
        """Put one in the place of sys.stderr, until `leave`; None where that leads to no file."""
        before = sys.stderr
        fd, encoding = None, "utf-8"
        # None: closed before we were started, and by now its number may be that of another file.
        if before is not None:
            encoding = before.encoding or encoding
            try:
                fd = before.fileno()
            except (OSError, ValueError):  # a test's
                return None
        outlet = cls(fd, encoding, report)
        outlet._before = before
        sys.stderr = outlet
        return outlet

    def write(self, text: str) -> int:
        """Take lines in, or drop them; the rest of a line waits for its end, or for `flush`."""
        with self._changed:
            whole, end, rest = (self._begun + text).rpartition("\n")
            self._begun = rest
            if end:
                self._put(f"{whole}\n")
        return len(text)

    def flush(self) -> None:
        """Take in what has no end yet. Does not wait until it is written: `drain` does."""
        with self._changed:
            text, self._begun = self._begun, ""
            if text:
                self._put(text)

    def drain(self, seconds: float) -> bool:
        """Wait until everything is written, but no longer than this; whether it is."""
        self.flush()
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)

    def end(self, seconds: float) -> bool:
        """`drain`, and let the thread end where it does not wait for a reader. It is the last call."""
        is_done = self.drain(seconds)
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        return is_done

    def leave(self) -> None:
        """Let sys.stderr be what it was, once everything is written.

        Where nobody reads it, this stays in its place: what is still said is lost, and waits for nobody.
        """
        if self.end(DRAIN_SECONDS) and sys.stderr is self:
            sys.stderr = self._before

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has it as an attribute
        """That of the stream in whose place this is."""
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]  # typeshed has this as one too
        """What becomes of characters that the encoding has not."""
        return "backslashreplace"

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor that is written to; OSError without one."""
        return super().fileno() if self._fd is None else self._fd

    def isatty(self) -> bool:
        """Whether a person sees it at once."""
        return self._fd is not None and os.isatty(self._fd)

    def _put(self, text: str) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        if self._full and self._held <= self._bytes_max // 2:
            self._tell()
        if self._full or self._held + len(data) > self._bytes_max:
            self._full = True
            self._drop(1)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._lines.append(data)
        self._held += len(data)
        self._changed.notify_all()

    def _drop(self, n: int) -> None:
        self.dropped += n
        self._untold += n

    def _tell(self) -> None:
        n, self._untold, self._full = self._untold, 0, False
        self._take(f"{self._report(n)}\n".encode(self._encoding, "backslashreplace"))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ends)
                if self._ends:
                    return
                parts = [self._lines.popleft()]
                size = len(parts[0])
                while self._lines and size + len(self._lines[0]) <= WRITE_BYTES:
                    parts.append(self._lines.popleft())
                    size += len(parts[-1])
            is_written = self._written(b"".join(parts))
            with self._changed:
                self._held -= size
                if not is_written:
                    self._drop(len(parts))
                elif self._untold and not self._lines:
                    self._tell()
                self._changed.notify_all()

    def _written(self, data: bytes) -> bool:
        """Write, however long that takes; whether it could be done."""
        if self._fd is None:
            return False
        # Past Python's own stream: its lock, held for ever by this thread, would be fatal at exit.
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # whoever shares the descriptor made it so
                select.select([], [self._fd], [])
            except OSError:  # its reader is gone, its disk is full
                return False
        return True
