"""What a terminal shows: answers on standard output, the rest on standard error, bars and colours only there.

Colours are off where the stream is no terminal, where NO_COLOR is set, and on a terminal that is dumb.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal

BAR_AFTER_SECONDS: Final = 2.0
STYLES: Final = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2"}
Style = Literal["bold", "red", "green", "yellow", "blue", "dim"]


def say(message: str) -> None:
    """A line to a person: on standard error."""
    print(message, file=sys.stderr)


def show(text: str) -> None:
    """An answer: on standard output."""
    print(text.rstrip("\n"))


def show_json(value: Any) -> None:
    """An answer to a program."""
    import msgspec

    show(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def paint(text: str, *styles: Style) -> str:
    """Text for standard output in colour, where that may be."""
    if not styles or not _may_colour():
        return text
    return f"\x1b[{';'.join(STYLES[style] for style in styles)}m{text}\x1b[0m"


def count(n: int, noun: str) -> str:
    """`1 event`, `2,000 events`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar, if standard error is a terminal and the work takes long enough to need one.

    What it yields is told how much is done, of how much (None: nobody knows).
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    shown = Progress(
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = shown.add_task("", total=None)
    began = time.monotonic()

    def moved(done: int, total: int | None) -> None:
        if shown.live.is_started or time.monotonic() - began > BAR_AFTER_SECONDS:
            shown.start()
            shown.update(task, completed=done, total=total)

    try:
        yield moved
    finally:
        shown.stop()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _may_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
