"""The way to one Redis server: a line that is opened again after it broke, and what is told without waiting.

What is asked has a deadline. What is told is kept until the server has answered it, and sent again over the
next connection: it must be such that twice does no harm.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

from riskengine.stores import StoreError, resp
from riskengine.stores.line import PUT_OFF, Breaker, Item, Line, Reply, said, script_names
from riskengine.stores.resp import Int64s

TOLD_BYTES_MAX: Final = 1 << 28  # what is kept for a store that is away
WHOLE: Final = frozenset({0})
AHEAD_MAX: Final = 64  # requests on the way whose replies have not been read

Call = Callable[..., list[Item]]


class Link:
    """One server, which has every partition. Not shared between threads.

    `timeout_ms` bounds each wait for a reply as a whole, `connect_ms` opening.
    """

    def __init__(self, url: str, timeout_ms: int, connect_ms: int) -> None:
        self.timeout_s = timeout_ms / 1000
        self.names: Mapping[str, str] = script_names()
        self.refused: str | None = None  # what the server said last of something that was told
        self.unsure = False  # whether the last request may have been served, though its reply never came
        self.dropped = 0  # of what was told, as there was too much of it
        self.failovers = 0  # of a lone server nobody takes the place
        self.renewed: list[frozenset[int]] = []  # partitions of one log whose server was reached anew
        self._line = Line(url, connect_ms / 1000)
        self._breaker = Breaker()
        self._told: deque[tuple[bytes, int]] = deque()  # not answered yet, and how many answers it has
        self._told_bytes = 0
        self._sent = 0  # how many of these went out over this connection

    def hurry(self, timeout_ms: int, connect_ms: int) -> None:
        """Wait no longer than this from now on."""
        self.timeout_s = timeout_ms / 1000
        self._line.connect_s = connect_ms / 1000

    @property
    def is_behind(self) -> bool:
        """Whether something that was told is still to be sent."""
        return len(self._told) > self._sent

    @property
    def is_at_hand(self) -> bool:
        """Whether who asks waits for a reply and nothing else, as far as is known."""
        return self._line.is_open and not self.is_behind

    @property
    def transacts(self) -> bool:
        """Whether a transaction may be asked for, as far as is known."""
        return self._line.is_open and self._line.transacts

    def ask(self, request: bytes | memoryview, at: int = 0, replies: int = 1) -> Reply:
        """Send one request and wait for its reply, which is good until the next. StoreError where it fails.

        One that a broken connection may have lost is sent once more: the server may have served it twice.
        `at` is the partition of its keys. Of several `replies` the last is what is answered; where one is an
        error, nothing has been done.
        """
        self.unsure = False
        self._breaker.check()
        deadline = time.monotonic() + self.timeout_s
        try:
            reply = self._asked(request, deadline, replies)
        except StoreError as error:
            if error.kind != "away" or time.monotonic() >= deadline:
                self._breaker.failed(error)
                raise
            try:
                reply = self._asked(request, deadline, replies)
            except StoreError as again:
                self._breaker.failed(again)
                raise
        self._breaker.answered()
        if replies > 1:
            for wrong in reply.errors(replies).values():
                raise said(wrong)
            reply.leave_out(replies - 1)
        message = reply.error()
        if message is not None and message.startswith("NOSCRIPT"):  # then it did nothing
            self._line.load()
            message = self._asked(request, deadline).error()
        if message is not None:
            raise said(message)
        return reply

    def ask_all(self, requests: memoryview, ends: Sequence[int], parts: Int64s) -> Reply:
        """Ask several things at once, request k of partition parts[k] ending at ends[k].

        One server has all that is asked together in one request.
        """
        assert len(ends) == 1, "there is one partition"
        return self.ask(requests)

    def tell(self, request: bytes | memoryview, at: int = 0) -> None:
        """Send one request and do not wait, and what was to go out later with it.

        It is kept, and sent again where it may have been lost.
        """
        self.later(request, at)
        self._send_now()

    def _send_now(self) -> None:
        left = len(self._told) - self._sent
        if self._line.is_open and left <= AHEAD_MAX:
            request = self._told[-1][0]
            if left > 1:
                request = b"".join([request for request, _ in islice(self._told, self._sent, None)])
            try:
                self._send(request, time.monotonic() + self.timeout_s)
            except StoreError:  # the next `ask` sends it again
                return
            self._sent += left

    def tell_all(
        self,
        requests: memoryview,
        ends: Sequence[int],
        parts: Int64s,
        after: Callable[[int, list[Item]], None] | None = None,
    ) -> None:
        """`tell` several things at once, as `ask_all` has them. Nothing comes after, where all is one."""
        assert len(ends) == 1, "there is one partition"
        assert after is None, "what comes after is part of the request"
        self.tell(requests)

    def later(
        self,
        request: bytes | memoryview,
        at: int = 0,
        replies: int = 1,
        after: Callable[[list[Item]], None] | None = None,
    ) -> None:
        """Keep a request until the server can be asked again, or several of them with as many `replies`."""
        assert after is None, "what comes after is part of the request"
        self._told.append((bytes(request), replies))
        self._told_bytes += len(request)
        while self._told_bytes > TOLD_BYTES_MAX and not self._sent:
            self._told_bytes -= len(self._told.popleft()[0])
            self.dropped += 1

    def settle(self) -> None:
        """Have all that was told answered. StoreError where it is not in time."""
        if self._told:
            self.call("PING")

    def call(self, *words: bytes | str | int, at: int = 0) -> list[Item]:
        """A command off the hot path, and what it answers."""
        return self.ask(resp.command(words), at).of(0)

    def each(self) -> Sequence[Call]:
        """`call` of every server that keeps a part of the data."""
        return [self.call]

    def close(self) -> None:
        """Hang up."""
        self._sent = 0
        self._line.close()

    def _asked(self, request: bytes | memoryview, deadline: float, replies: int = 1) -> Reply:
        if not self._line.is_open:  # opening has a deadline of its own
            self._sent = 0
            self._line.open()
            self.renewed = [WHOLE]
            deadline = time.monotonic() + self.timeout_s
        put_off: list[tuple[bytes, int]] = []
        try:
            while self._sent < len(self._told):
                self._send(self._told[self._sent][0], deadline)
                self._sent += 1
                if self._sent > AHEAD_MAX:
                    self._acknowledge(1, put_off, deadline)
                    if put_off:  # and so would the rest be
                        self._acknowledge(self._sent, put_off, deadline)
                        raise said(self.refused or "")
                    if time.monotonic() > deadline - self.timeout_s / 2:
                        raise StoreError(
                            "behind", "the store is back, and still catching up with what it missed"
                        )
            self.unsure = True
            self._send(request, deadline)
            told = self._replies(self._sent)
            reply = self._receive(deadline, told + replies)
            if told:
                self._take_note(self._sent, told, reply, put_off)
                reply.leave_out(told)
        finally:
            self._told.extendleft(reversed(put_off))
        self.unsure = False
        return reply

    def _replies(self, n: int) -> int:
        """How many there are to the first n of what was told."""
        return sum([replies for _, replies in islice(self._told, n)])

    def _acknowledge(self, n: int, put_off: list[tuple[bytes, int]], deadline: float) -> None:
        """Read replies to the first n of what was told."""
        replies = self._replies(n)
        self._take_note(n, replies, self._receive(deadline, replies), put_off)

    def _take_note(self, n: int, answered: int, reply: Reply, put_off: list[tuple[bytes, int]]) -> None:
        """See what came of the first n of what was told, by the first replies, so many of which are theirs.

        What a server does not do just now is `put_off`.
        """
        self._sent -= n
        wrong = reply.errors(answered)
        at = 0
        for _ in range(n):
            told, replies = self._told.popleft()
            self._told_bytes -= len(told)
            if not wrong:
                continue
            messages = [wrong[k] for k in range(at, at + replies) if k in wrong]
            at += replies
            self.refused = messages[-1] if messages else self.refused
            if any(message.startswith(PUT_OFF) for message in messages):
                put_off.append((told, replies))
                self._told_bytes += len(told)

    def _send(self, request: bytes | memoryview, deadline: float) -> None:
        try:
            self._line.send(request, deadline)
        except StoreError:
            self._sent = 0
            raise

    def _receive(self, deadline: float, replies: int = 1) -> Reply:
        try:
            return self._line.receive(deadline, replies)
        except StoreError:
            self._sent = 0
            raise
