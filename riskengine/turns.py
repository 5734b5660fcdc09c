"""Whose turn it is: each of several judges works for one thread at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from riskengine.fibers import Fiber, GivenUp, Waker, current, help_out
from riskengine.judge import Judge


class Turns:
    """Hands out an engine's judges."""

    def __init__(self, judges: list[Judge]) -> None:
        self.judges = judges
        self._locks = [threading.Lock() for _ in judges]
        self._freed = threading.Condition(threading.Lock())
        self._waiting = 0  # threads, for any to be free
        self._asleep: deque[Waker] = deque()  # fibers, likewise

    def take(self) -> Judge:
        """One that is free, or as soon as one is. Give it back with `give`.

        The first whose store is at hand; a thread opens one that is not open yet. While one is behind with
        what it decided without its store, that one alone, so that it catches up, and what is decided
        meanwhile is decided in order.
        """
        judges = self.judges
        fiber = current() if judges[0].store.waits else None
        if len(judges) == 1 and fiber is None:
            self._acquire(0)
            return judges[0]
        behind = [i for i, judge in enumerate(judges) if judge.store.is_behind]
        wanted = behind[:1] or range(len(judges))
        if fiber is not None:
            return self._take_afloat(fiber, wanted)
        while True:
            if (judge := self._taken(self._answering(wanted)) or self._opened(wanted)) is not None:
                return judge
            if not help_out():
                break
        with self._freed:
            self._waiting += 1
            try:
                while (judge := self._taken(self._answering(wanted))) is None:
                    self._freed.wait()
                return judge
            finally:
                self._waiting -= 1

    def _acquire(self, i: int) -> None:
        while not self._locks[i].acquire(blocking=False):
            if not help_out():
                self._locks[i].acquire()
                return

    def _answering(self, wanted: Sequence[int]) -> Sequence[int]:
        """Those whose store is at hand; all where that of none is."""
        return [i for i in wanted if self.judges[i].store.is_at_hand] or wanted

    def _opened(self, wanted: Sequence[int]) -> Judge | None:
        """One that is free and was not open. Where it cannot be opened, others are to be waited for."""
        for i in wanted:
            store = self.judges[i].store
            if store.is_to_be_opened and self._locks[i].acquire(blocking=False):
                is_open = False
                try:
                    is_open = store.reach()
                finally:
                    if not is_open:
                        self._locks[i].release()
                if is_open:
                    return self.judges[i]
        return None

    def _taken(self, wanted: Sequence[int]) -> Judge | None:
        for i in wanted:
            if self._locks[i].acquire(blocking=False):
                return self.judges[i]
        return None

    def _take_afloat(self, fiber: Fiber, wanted: Sequence[int]) -> Judge:
        """`take` for a fiber, whose thread has others to let go on."""
        wanted = self._answering(wanted)
        while (judge := self._taken(wanted)) is None:
            waker = Waker(fiber)
            self._asleep.append(waker)
            judge = self._taken(wanted)  # what was given back just before has woken nobody
            if judge is not None:
                waker.cancel()
                return judge
            try:
                waker.wait()
            except GivenUp:
                self._wake_one()  # this one may have been woken in its stead
                raise
        return judge

    def give(self, judge: Judge) -> None:
        """Give back what `take` gave."""
        self._locks[self.judges.index(judge)].release()
        if self._waiting:  # whoever counts itself in later looks at the locks after that
            with self._freed:
                self._freed.notify_all()
        if self._asleep:
            self._wake_one()

    def _wake_one(self) -> None:
        with suppress(IndexError):  # others take them, too
            while not self._asleep.popleft().wake():
                pass

    @property
    def is_at_hand(self) -> bool:
        """Whether the store of the next one answers, as far as is known, and nothing is to be caught up with.

        Where that one is to be opened first, it is for a thread to do.
        """
        stores = [judge.store for judge in self.judges]
        if any(store.is_behind for store in stores):
            return False
        free = [i for i, lock in enumerate(self._locks) if not lock.locked()]
        if any(stores[i].is_at_hand for i in free):
            return True
        return any(store.is_at_hand for store in stores) and not any(stores[i].is_to_be_opened for i in free)

    @property
    def is_free(self) -> bool:
        """Whether one could be taken without waiting, just now."""
        return not all(lock.locked() for lock in self._locks)

    @contextmanager
    def first(self) -> Iterator[Judge]:
        """The first, for what is no scoring: so that one thread sees there what another did."""
        self._acquire(0)
        try:
            yield self.judges[0]
        finally:
            self.give(self.judges[0])

    @contextmanager
    def all(self) -> Iterator[Sequence[Judge]]:
        """Every one, when each has done what it is at."""
        for i in range(len(self._locks)):
            self._acquire(i)
        try:
            yield self.judges
        finally:
            for judge in self.judges:
                self.give(judge)
