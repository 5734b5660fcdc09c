"""Who waits for a store: a thread by itself, or a fiber, which lets an event loop go on meanwhile.

A fiber is a stack of its own in the loop's thread. What scores is the same code in both, and only how it
waits differs; of two fibers one works until it waits, as of two coroutines. Handing batches to threads of the
same core took half as much again: each reply woke a thread that had the interpreter to win back first.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
L = TypeVar("L", bound=threading.local)
Work = Callable[[], T]
Done = Callable[[Any, BaseException | None], None]  # what came of it: a result, or what was raised


class GivenUp(Exception):  # noqa: N818  # no error: what was asked is not wanted any more
    """Raised in a fiber that waits for a `Waker`, where nobody waits for the fiber any more."""


class Fiber(greenlet):
    """Does one piece of work after the other, for `Fibers`."""

    def __init__(self, fibers: Fibers) -> None:
        super().__init__(self._live)
        self.loop = fibers.loop
        self.own: WeakKeyDictionary[threading.local, threading.local] = WeakKeyDictionary()  # see `mine`
        self._idle = fibers.idle

    def _live(self, work: Work[Any], done: Done) -> None:
        while True:
            try:
                ended = [done, work(), None]
            except Exception as error:
                ended = [done, None, error]
            del work, done  # what they hold on to is not to live as long as this
            self._idle.append(self)
            work, done = self._leave(ended)

    def go_on(self, *given: Any) -> None:
        """Let it work until it waits, or is done: whose work it was is told then, outside of it."""
        self.parent = getcurrent()  # comes back to who lets it go on, not to who began it
        self._tell(self.switch(*given))

    def give_up(self) -> None:
        """Raise GivenUp where it waits."""
        self.parent = getcurrent()
        self._tell(self.throw(GivenUp))

    def _tell(self, ended: list[Any] | None) -> None:
        if ended is not None:
            done, result, wrong = ended
            ended.clear()
            done(result, wrong)

    def wait(self) -> Any:
        """Let the loop go on; return what `go_on` is called with."""
        return self._leave(None)

    def _leave(self, said: list[Any] | None) -> Any:
        assert self.parent is not None, "it was begun by one"
        return self.parent.switch(said)


class Fibers:
    """Those of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle: list[Fiber] = []

    def run(self, work: Work[T], done: Done) -> Fiber:
        """Begin a piece of work, on the loop; `done` is called there, maybe before this returns."""
        fiber = self.idle.pop() if self.idle else Fiber(self)
        fiber.go_on(work, done)
        return fiber


class _Here(threading.local):
    def __init__(self) -> None:
        self.fibers: Fibers | None = None  # of the loop that ran here last
        self.waiting: dict[Fiber, Callable[[], Any]] = {}  # and what waits in its stead


_here: Final = _Here()


async def afloat(work: Work[T]) -> T:
    """Work in a fiber of the running loop. Who cancels it waits for its end: what it holds, others want."""
    import asyncio  # who calls this has it; the others need not wait for it

    loop = asyncio.get_running_loop()
    fibers = _here.fibers
    if fibers is None or fibers.loop is not loop:
        fibers = _here.fibers = Fibers(loop)
    future: asyncio.Future[T] = loop.create_future()

    ended = False

    def done(result: T, wrong: BaseException | None) -> None:
        nonlocal ended
        ended = True
        if future.done():  # cancelled
            return
        if wrong is not None:
            future.set_exception(wrong)
        else:
            future.set_result(result)

    fiber = fibers.run(work, done)
    try:
        return await future
    except asyncio.CancelledError:
        while not ended:
            if fiber in _here.waiting:
                fiber.go_on(_here.waiting[fiber]())
            else:  # for its turn, with nothing done
                fiber.give_up()
        raise


def current() -> Fiber | None:
    """The fiber that asks; None where a thread does."""
    asking = getcurrent()
    return asking if isinstance(asking, Fiber) else None


def mine(local: L) -> L:
    """Of what each thread has one of its own, that of the fiber that asks, or of the thread."""
    fiber = current()
    if fiber is None:
        return local
    found = fiber.own.get(local)
    if found is None:
        found = fiber.own[local] = type(local)()
    assert isinstance(found, type(local))
    return found


def ready(number: int, event: int, seconds: float, poll: select.poll) -> bool:
    """Wait until there is an `event` (of select.poll) of a file, by its number; False where time is up.

    `poll` looks for this event of this file.
    """
    deadline = time.monotonic() + seconds

    def came() -> bool:
        return bool(poll.poll(1000 * max(deadline - time.monotonic(), 0.0)))

    fiber = current()
    if fiber is None:
        return came()
    loop = fiber.loop
    add, remove = (
        (loop.add_writer, loop.remove_writer)
        if event == select.POLLOUT
        else (loop.add_reader, loop.remove_reader)
    )
    add(number, fiber.go_on, True)
    timer = loop.call_later(seconds, fiber.go_on, False)
    try:
        return _waited(fiber, came)
    finally:
        timer.cancel()
        if not loop.is_closed():
            remove(number)


def pause(seconds: float) -> None:
    """Do nothing for a while."""
    fiber = current()
    if fiber is None:
        time.sleep(seconds)
        return
    timer = fiber.loop.call_later(seconds, fiber.go_on, None)
    try:
        _waited(fiber, lambda: time.sleep(seconds))
    finally:
        timer.cancel()


def _waited(fiber: Fiber, instead: Callable[[], T]) -> T:
    """Let the loop go on until it calls the fiber back, or somebody on its thread waits `instead`."""
    waiting = _here.waiting
    waiting[fiber] = instead
    try:
        result: T = fiber.wait()
        return result
    finally:
        del waiting[fiber]


def help_out() -> bool:
    """Do the waiting of a fiber of this thread, and let it go on; False where none waits.

    Who is to wait for what a fiber holds, in the thread of its loop, would wait for ever: it cannot go on.
    """
    for fiber, instead in _here.waiting.items():
        fiber.go_on(instead())
        return True
    return False


class Waker:
    """Wakes a fiber that waits for it, once, from any thread."""

    def __init__(self, fiber: Fiber) -> None:
        self._fiber = fiber
        self._counts = True

    def wake(self) -> bool:
        """Let it go on, soon; False where it waits no more, or its loop has been closed."""
        if not self._counts:
            return False
        try:
            self._fiber.loop.call_soon_threadsafe(self._fire)
        except RuntimeError:
            return False
        return True

    def wait(self) -> None:
        """Called by the fiber: return when it is woken. Raises GivenUp."""
        try:
            self._fiber.wait()
        finally:
            self._counts = False

    def cancel(self) -> None:
        """Called by the fiber, on its loop: it does not wait after all."""
        self._counts = False

    def _fire(self) -> None:
        if self._counts:
            self._fiber.go_on(None)
