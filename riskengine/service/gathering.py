"""Concurrent requests become one batch: what comes while the engine is at work is its next batch.

A request that comes alone never waits for others; what waits is bounded. Where nothing outside of the process
is waited for, the event loop scores small batches itself: on one core, handing each to a thread and back took
a third of the throughput. Where a shared store is waited for and answers, fibers of the loop do: it goes on
reading. Everything else is the work of threads, one for each batch that the engine may have at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any, Final

from riskengine.fibers import Fibers
from riskengine.service.logs import where

Score = Callable[[list[Any], bool], Sequence[Any]]
Outcome = Sequence[Any] | Exception | None  # of each event what `Score` gave; None: there was no time
BATCH_MAX: Final = 1_000
# How long so few events take is known too vaguely: they are refused only where there is less time than that,
# and that under load alone.
FEW: Final = 64
# Of the time left, what is let in may have to wait so much: it is to be answered in time, not just about. The
# pace that is reckoned with is that of good moments: with 0.6 the last hundredth of a step was late in one of
# twenty tests, with 0.8 many were on a shared machine. (Always 0.5 made a core that could do 256 requests in
# 21 ms refuse four in ten of them, where they had 50.) So it begins at the most, goes down by a tenth with
# each batch that has cut it fine, and up again while none does.
SURE_MOST: Final = 0.5
SURE_LEAST: Final = 0.25
# Of its time was left when it was answered. With this the last hundredth of a step came to its caller after
# 42 to 48 ms of 50; with 0.2 (and 0.7 at most above) after 44 to 47, and it was late in three tests of eight.
FINE: Final = 0.3
UP: Final = 0.002  # a batch: three batches in a hundred may cut it fine
INLINE_MAX: Final = 64  # events that the loop scores itself: some 2 ms, in which it reads nothing
# Are read at a stretch: of ten thousand requests the first wait for no last. With 4 ms a hundred callers of a
# slow machine had two batches scored between them each time, and waited up to 47 ms in their sockets.
READ_SECONDS: Final = 0.01
TICK_SECONDS: Final = 0.001  # of the loop's clock and timers
PAUSE_SECONDS: Final = 0.002  # with nothing to do: then nothing has waited to be read. Writing takes less.
# Of its time, the last part is for the contract: its answers come after the batch that the loop is at just
# then, and one after the other where many are due. Begun when time was up, the last hundredth of a step came
# 7 ms late where others wanted the processor too.
LAST: Final = 0.05
# At least half of what is under way makes another batch worth a thread: else 32 callers came by 11.
SHARE: Final = 2
# Of fibers any that is free takes its part of what waits, and no fewer events than this where there are more:
# so the store is at work on one batch while the loop is at another. In one batch 32 callers had one wait for
# the other a fifth of the time, and came to four answers where they come to five. Nor is a batch begun of
# fewer beside others that are no smaller: each costs some 0.2 ms, and with as few as had just come 32 callers
# were in batches of 11 instead of 14, and came to 7 to 14 in a hundred answers less.
PART: Final = 16
HOLD_SECONDS: Final = 0.02  # at most they are held back: a server may stand still
# How much of its pace a batch makes the pace that is reckoned with. One that was held up, by the machine or
# by the disk, says little of the next: with 0.2 for both, one in thirty of 256 callers was refused, whose
# events the core does in 18 ms.
FASTER: Final = 0.2
SLOWER: Final = 0.05
# To refuse takes so much of what it takes to answer. What is refused must not make the answers between seem
# slow: then less is let in, more is refused, and of 100,000 requests at 10,000 connections 386 were served.
REFUSED: Final = 0.2
_log = logging.getLogger(__name__)


class FullError(Exception):
    """There is no room in the queue, no time to wait in it, or nothing is taken any more."""


class Job:
    """The events of one request, to be answered until `until` (of the loop's clock).

    Whoever asks makes a kind of it that knows what to do at the end.
    """

    __slots__ = ("due", "events", "features", "fine", "is_done", "until")

    due: float  # when the contract begins to answer it: known once it is entered

    def __init__(self, events: list[Any], features: bool, until: float) -> None:
        self.events = events
        self.features = features
        self.until = until
        self.is_done = False
        self.fine = 0.0  # to be answered so short before `until` is cutting it fine; 0 where few were ahead

    def finish(self, outcome: Outcome, seconds: float) -> None:
        """Called once, on the loop: with results, what went wrong, or None where time is up.

        `seconds` is what the engine took for the batch it was in. What is answered without a result is
        counted and journaled all the same, when its turn comes.
        """
        raise NotImplementedError


class Gatherer:
    """Takes jobs on an event loop and has them scored in batches. `start`, then `submit`, then `close`."""

    def __init__(
        self,
        score: Score,
        queue_max: int,
        observe: Callable[[int, float], None],
        waits: Callable[[], bool],
        at_once: int = 1,
        floats: Callable[[], bool] = lambda: False,
    ) -> None:
        """`observe` is told how many events each batch had and how many seconds it took.

        `waits` says whether scoring may wait for a store or a disk now; of batches that may, `at_once` are
        scored at a time. `floats` says whether a fiber can do what waiting there is.
        """
        self.held = 0  # events waiting or being scored
        self._score = score
        self._queue_max = queue_max
        self._observe = observe
        self._waits = waits
        self._floats = floats
        self._waiting: deque[Job] = deque()
        self._in_hand: list[list[Job]] = []  # of threads and fibers
        self._is_afloat = False  # the last one of these
        self._floated = 0.0  # when a fiber last began
        self._patience: asyncio.TimerHandle | None = None  # runs while fibers are at work
        self._inbox: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._comes = False  # a turn
        self._open = False
        self._idle = asyncio.Event()
        self._waiting_events = 0
        self._reads_since = 0.0  # when a batch was last done with, and the loop could read
        self._is_pressed = False  # more than a few were held since it last had nothing to do for a while
        self._looks_anew = True  # for what has come
        self._looked = self._looked_before = 0.0  # when it did
        self._read = 0.0  # when a request last was
        self._pace = 0.0  # seconds an event, lately, with all that the loop does beside
        self._refused = 0  # since the last batch was delivered
        self.sure = SURE_MOST  # see there
        self._delivered = 0.0  # when the last batch was
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")
        self._threads = [
            threading.Thread(target=self._work, name="riskengine-scoring", daemon=True)
            for _ in range(at_once)
        ]

    def start(self) -> None:
        """Begin to take jobs, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._fibers = Fibers(self._loop)
        self._open = True
        self._idle.set()
        for thread in self._threads:
            thread.start()

    def came(self, now: float, answered: float, most: float) -> float:
        """Since when a request may have been there that is read `now`, both in seconds of the loop's clock.

        Its caller was last `answered` then. Under load the loop reads hundreds of requests each time it
        looks for what has come, and scores between: what comes meanwhile waits in its socket till the next
        look. No more than `most` is counted: of ten thousand callers at once all wait for longer than they
        have time, and of 100,000 requests 1,004 were served.
        """
        if self._looks_anew:
            self._looks_anew = False
            self._loop.call_soon(self._look_again)  # when it has read what is there
            self._looked_before, self._looked = self._looked, now
            if now > max(self._read, self._reads_since) + PAUSE_SECONDS:
                self._looked_before, self._is_pressed = now, False
        self._read = now
        self._is_pressed = self._is_pressed or self.held > FEW
        return max(self._looked_before, answered, now - most) if self._is_pressed else self._looked

    def _look_again(self) -> None:
        self._looks_anew = True

    def check(self, n: int, until: float) -> None:
        """Raise FullError where n events would not fit, or would have to wait for too long."""
        # Scored here too, not only at each turn of the loop: of thousands of connections it reads tens of
        # thousands of requests at a stretch. And not at once when there is enough, as what waits in our queue
        # is seen here, and what waits in sockets is not.
        if (
            self._waiting_events >= INLINE_MAX
            and time.monotonic() - self._reads_since > READ_SECONDS
            and not self._in_hand
            and not self._waits()
        ):
            self._dispatch()
        held = self.held
        if not self._open or held + n > self._queue_max:
            raise FullError
        if held > FEW or self._is_pressed:
            wanted = held * self._pace / self.sure if held > FEW else (held + n) * self._pace
            if wanted > until - time.monotonic():
                self._refused += 1
                if not held:  # nor will a batch tell that the pace is another
                    self._pace *= 1 - FASTER
                raise FullError

    def submit(self, job: Job) -> None:
        """Queue a job, and maybe score a batch of what waits. Raises FullError as `check` does."""
        self.check(len(job.events), job.until)
        self.enter(job)

    def enter(self, job: Job) -> None:
        """`submit` what was just checked."""
        n = len(job.events)
        self._read = time.monotonic()
        left = job.until - self._read
        job.due = job.until - LAST * left
        if self.held > FEW:
            job.fine = FINE * left
        self.held += n
        self._waiting.append(job)
        self._waiting_events += n
        if not self._comes and self._may_go_on():
            if not self._in_hand:
                self._delivered = self._reads_since = self._read
                self._refused = 0
                self._idle.clear()
            self._have_a_turn()  # after what else has come by now
        if job.due < self._alarm_at:
            self._set_alarm(job.due)

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return self._open

    async def close(self) -> None:
        """Take nothing more, finish what is there, and end the thread."""
        if self._open:
            self._open = False
            await self._idle.wait()
            for _ in self._threads:
                self._inbox.put(None)
            for thread in self._threads:
                await asyncio.to_thread(thread.join)
            for timer in (self._alarm, self._patience):
                if timer is not None:
                    timer.cancel()

    def _have_a_turn(self) -> None:
        if not self._comes:
            self._comes = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Go on, as long as there is something, and somebody to do it."""
        self._comes = False
        if self._may_go_on():
            self._dispatch()
        if self._may_go_on():
            self._have_a_turn()  # what has come meanwhile is read first
        elif not self._waiting and not self._in_hand:
            self._idle.set()

    def _may_go_on(self) -> bool:
        """Whether there is a batch to begin: beside others under way one that is worth it."""
        in_hand = len(self._in_hand)
        if not in_hand or not self._waiting:
            return bool(self._waiting)
        if in_hand == len(self._threads):
            return False
        under_way = self.held - self._waiting_events
        if self._is_afloat:
            held_back = self._waiting_events < min(PART, under_way)
            return not held_back or time.monotonic() - self._floated > HOLD_SECONDS
        return SHARE * self._waiting_events >= under_way

    def _dispatch(self) -> None:
        jobs = [self._waiting.popleft()]
        n, features = len(jobs[0].events), jobs[0].features
        few = n <= INLINE_MAX
        inline = few and not self._in_hand and not self._waits()
        floating = few and not inline and self._floats()
        most = INLINE_MAX if inline or floating else BATCH_MAX
        if floating:
            free = len(self._threads) - len(self._in_hand)
            most = min(most, max(PART, -(-self._waiting_events // free)))
        while self._waiting and self._waiting[0].features is features:
            more = len(self._waiting[0].events)
            if n + more > most:
                break
            n += more
            jobs.append(self._waiting.popleft())
        self._waiting_events -= n
        if inline:
            began = time.monotonic()
            outcomes = self._outcomes(jobs)
            self._deliver(jobs, outcomes, time.monotonic() - began)
            return
        self._in_hand.append(jobs)
        self._is_afloat = floating
        if floating:
            self._float(jobs)
        else:
            self._inbox.put(jobs)

    def _float(self, jobs: list[Job]) -> None:
        began = self._floated = time.monotonic()
        if self._patience is None:
            self._patience = self._loop.call_later(HOLD_SECONDS, self._lose_patience)

        def done(outcomes: list[Outcome], wrong: BaseException | None) -> None:
            assert wrong is None, "what goes wrong is an outcome"
            self._delivered_later(jobs, outcomes, time.monotonic() - began)

        self._fibers.run(lambda: self._outcomes(jobs), done)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._in_hand:
            self._patience = self._loop.call_later(HOLD_SECONDS, self._lose_patience)
            self._have_a_turn()

    def _delivered_later(self, jobs: list[Job], outcomes: list[Outcome], seconds: float) -> None:
        self._in_hand.remove(jobs)
        self._deliver(jobs, outcomes, seconds)
        self._have_a_turn()

    def _deliver(self, jobs: list[Job], outcomes: list[Outcome], seconds: float) -> None:
        n = sum([len(job.events) for job in jobs])
        self.held -= n
        self._observe(n, seconds)
        now = time.monotonic()
        pace = (now - self._delivered) / (n + REFUSED * self._refused)
        self._pace += (FASTER if pace < self._pace else SLOWER) * (pace - self._pace)
        self._delivered = now
        self._refused = 0
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._finish(job, outcome, seconds)
        now = time.monotonic()
        self._reads_since = now
        if any(job.fine and job.until - now < job.fine for job in jobs):
            self.sure = max(0.9 * self.sure, SURE_LEAST)
        else:
            self.sure = min(self.sure + UP, SURE_MOST)

    def _finish(self, job: Job, outcome: Outcome, seconds: float) -> None:
        if not job.is_done:
            job.is_done = True
            try:
                job.finish(outcome, seconds)
            except Exception as error:  # the others have their answers all the same
                _log.error("an answer could not be given: %s", where(error))

    # -- deadlines: one alarm for the first of them, as two timer calls a request took 3 us

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        # Not call_at: that goes by when uvloop last looked at the clock, and what it gives may know no time.
        self._alarm = self._loop.call_later(when - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._alarm, self._alarm_at = None, float("inf")
        now = time.monotonic() + TICK_SECONDS
        left = float("inf")
        for job in chain(*self._in_hand, self._waiting):
            if job.is_done:
                continue
            if job.due <= now:
                self._finish(job, None, 0.0)
            else:
                left = min(left, job.due)
        if left < float("inf"):
            self._set_alarm(left)

    # -- the scoring thread

    def _work(self) -> None:
        while (jobs := self._inbox.get()) is not None:
            began = time.monotonic()
            outcomes = self._outcomes(jobs)
            self._loop.call_soon_threadsafe(self._delivered_later, jobs, outcomes, time.monotonic() - began)

    def _outcomes(self, jobs: list[Job]) -> list[Outcome]:
        features = jobs[0].features
        try:
            if len(jobs) == 1:
                return [self._score(jobs[0].events, features)]
            results = self._score([event for job in jobs for event in job.events], features)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            # One of them may be what it fails over: the others shall not fail with it. Retries count once.
            _log.error("a batch of %d requests failed (%s): each goes by itself", len(jobs), where(error))
            return [self._outcomes([job])[0] for job in jobs]
        outcomes: list[Outcome] = []
        at = 0
        for job in jobs:
            outcomes.append(results[at : at + len(job.events)])
            at += len(job.events)
        return outcomes
