"""Whose turn it is: each of several judges works for one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from riskengine.judge import Judge


class Turns:
    """Hands out an engine's judges."""

    def __init__(self, judges: list[Judge]) -> None:
        self.judges = judges
        self._locks = [threading.Lock() for _ in judges]
        self._freed = threading.Condition(threading.Lock())
        self._waiting = 0  # threads, for any to be free

    def take(self) -> Judge:
        """One that is free, or as soon as one is. Give it back with `give`.

        The first that is; while one is behind with what it decided without its store, that one alone, so
        that it catches up, and what is decided meanwhile is decided in order.
        """
        judges, locks = self.judges, self._locks
        if len(judges) == 1:
            locks[0].acquire()
            return judges[0]
        behind = [i for i, judge in enumerate(judges) if judge.store.is_behind]
        wanted = behind[:1] or range(len(judges))
        for i in wanted:
            if locks[i].acquire(blocking=False):
                return judges[i]
        with self._freed:
            self._waiting += 1
            try:
                while True:
                    for i in wanted:
                        if locks[i].acquire(blocking=False):
                            return judges[i]
                    self._freed.wait()
            finally:
                self._waiting -= 1

    def give(self, judge: Judge) -> None:
        """Give back what `take` gave."""
        self._locks[self.judges.index(judge)].release()
        if self._waiting:  # whoever counts itself in later looks at the locks after that
            with self._freed:
                self._freed.notify_all()

    @property
    def is_free(self) -> bool:
        """Whether one could be taken without waiting, just now."""
        return not all(lock.locked() for lock in self._locks)

    @contextmanager
    def first(self) -> Iterator[Judge]:
        """The first, for what is no scoring: so that one thread sees there what another did."""
        self._locks[0].acquire()
        try:
            yield self.judges[0]
        finally:
            self.give(self.judges[0])

    @contextmanager
    def all(self) -> Iterator[Sequence[Judge]]:
        """Every one, when each has done what it is at."""
        for lock in self._locks:
            lock.acquire()
        try:
            yield self.judges
        finally:
            for judge in self.judges:
                self.give(judge)
