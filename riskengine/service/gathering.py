"""Concurrent requests become one batch: what comes while the engine is at work is its next batch.

A request that comes alone never waits for others. The engine works in one thread of its own, so that the
event loop goes on reading; what waits is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final

from riskengine.engine import Result

Score = Callable[[list[Any], bool], Sequence[Result]]
BATCH_MAX: Final = 1_000
_log = logging.getLogger(__name__)


class FullError(Exception):
    """There is no room in the queue, or nothing is taken any more."""


class Job:
    """The events of one request. `done` gets their results, an exception, or None past the deadline."""

    __slots__ = ("done", "events", "features", "seconds")

    def __init__(self, events: list[Any], features: bool, done: asyncio.Future[list[Result] | None]) -> None:
        self.events = events
        self.features = features
        self.done = done
        self.seconds = 0.0  # the engine's, for its whole batch


class Gatherer:
    """Takes jobs on an event loop and has them scored in batches. `start`, then `submit`, then `close`."""

    def __init__(self, score: Score, queue_max: int, observe: Callable[[int, float], None]) -> None:
        """`observe` is told how many events each batch had and how many seconds it took."""
        self.held = 0  # events waiting or being scored
        self._score = score
        self._queue_max = queue_max
        self._observe = observe
        self._waiting: deque[Job] = deque()
        self._inbox: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._busy = False  # with a batch, or about to be
        self._open = False
        self._idle = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="riskengine-scoring", daemon=True)

    def start(self) -> None:
        """Begin to take jobs, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._idle.set()
        self._thread.start()

    def submit(self, events: list[Any], features: bool = False) -> Job:
        """Queue events. Raises FullError at once where they would not fit."""
        if not self._open or self.held + len(events) > self._queue_max:
            raise FullError
        job = Job(events, features, self._loop.create_future())
        self._waiting.append(job)
        self.held += len(events)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._loop.call_soon(self._dispatch)  # after what else has come by now
        return job

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return self._open

    async def close(self) -> None:
        """Take nothing more, finish what is there, and end the thread."""
        if self._open:
            self._open = False
            await self._idle.wait()
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    def _dispatch(self) -> None:
        jobs = [self._waiting.popleft()]
        n, features = len(jobs[0].events), jobs[0].features
        while self._waiting and self._waiting[0].features is features:
            n += len(self._waiting[0].events)
            if n > BATCH_MAX:
                break
            jobs.append(self._waiting.popleft())
        self._inbox.put(jobs)

    def _deliver(self, jobs: list[Job], outcomes: list[list[Result] | Exception], seconds: float) -> None:
        n = sum(len(job.events) for job in jobs)
        self.held -= n
        self._observe(n, seconds)
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.seconds = seconds
            if (
                not job.done.done()
            ):  # past its deadline it is: its events are counted and journaled all the same
                if isinstance(outcome, Exception):
                    job.done.set_exception(outcome)
                else:
                    job.done.set_result(outcome)
        if self._waiting:
            self._dispatch()
        else:
            self._busy = False
            self._idle.set()

    # -- the scoring thread

    def _work(self) -> None:
        while (jobs := self._inbox.get()) is not None:
            began = time.perf_counter()
            outcomes = self._outcomes(jobs)
            self._loop.call_soon_threadsafe(self._deliver, jobs, outcomes, time.perf_counter() - began)

    def _outcomes(self, jobs: list[Job]) -> list[list[Result] | Exception]:
        features = jobs[0].features
        try:
            if len(jobs) == 1:
                return [list(self._score(jobs[0].events, features))]
            results = self._score([event for job in jobs for event in job.events], features)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            # One of them may be what it fails over: the others shall not fail with it. Retries count once.
            _log.error(
                "a batch of %d requests failed (%s): each goes by itself", len(jobs), type(error).__name__
            )
            return [self._outcomes([job])[0] for job in jobs]
        outcomes: list[list[Result] | Exception] = []
        at = 0
        for job in jobs:
            outcomes.append(list(results[at : at + len(job.events)]))
            at += len(job.events)
        return outcomes
